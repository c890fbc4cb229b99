"""Links a submitted Ray job and its MLflow runs: job ids for MLflow, and run ids in the metadata of the job."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import Mapping

import ray

log = logging.getLogger(__name__)

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the entrypoint of a submitted job."""


def submission_id() -> str | None:
    """Submission id of the job whose entrypoint this process is; None if it was not submitted."""
    try:
        return json.loads(os.environ.get(_CONFIG, "{}"))["metadata"]["job_submission_id"]
    except (ValueError, LookupError, TypeError):
        return None


def ray_facts() -> dict[str, str]:
    """Ids of this Ray job and of its submission, for the MLflow run; without Ray, nothing."""
    facts: dict[str, str] = {}
    if ray.is_initialized():
        facts["ray_job_id"] = ray.get_runtime_context().get_job_id()
    submitted = submission_id()
    if submitted is not None:
        facts["ray_submission_id"] = submitted
    return facts


def note_in_job(facts: Mapping[str, str]) -> None:
    """Add facts to the metadata of the submitted job whose entrypoint this process is, if it is one.

    `ray job list` and the dashboard show them. Ray has no public way to do this while a job runs
    (ray-project/ray#36638), and nothing else writes there in the meantime. A failure is only logged: the job goes on.
    """
    job = submission_id()
    if job is None:
        return
    try:
        asyncio.run(_note(job, facts))
    except Exception as error:  # Ray's internals may change
        log.warning("job %s: not added to its metadata: %s (%s)", job, dict(facts), error)


async def _note(job: str, facts: Mapping[str, str]) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    store = JobInfoStorageClient(GcsClient(address=ray.get_runtime_context().gcs_address))
    known = await store.get_info(job)
    if known is None:
        raise LookupError("Ray does not know the job")
    await store.put_info(job, dataclasses.replace(known, metadata={**(known.metadata or {}), **facts}))
