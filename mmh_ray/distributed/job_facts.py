"""A job submitted to a cluster: its id for MLflow, and what is written beside it for `ray job list` and the dashboard."""

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
"""What Ray hands the entrypoint of a submitted job."""


def submission_id() -> str | None:
    """Id of the job that this process is the entrypoint of; None where it was not submitted."""
    try:
        return json.loads(os.environ.get(_CONFIG, "{}"))["metadata"]["job_submission_id"]
    except (ValueError, LookupError, TypeError):
        return None


def ray_facts() -> dict[str, str]:
    """What an MLflow run should know of the Ray job that it belongs to: its id, and that of its submission. Without Ray, nothing."""
    facts: dict[str, str] = {}
    if ray.is_initialized():
        facts["ray_job_id"] = ray.get_runtime_context().get_job_id()
    found = submission_id()
    if found is not None:
        facts["ray_submission_id"] = found
    return facts


def note_in_job(facts: Mapping[str, str]) -> None:
    """Add to the metadata of the job that this process is the entrypoint of; without one nothing happens.

    Ray has no public way to do that while a job runs (ray-project/ray#36638), and nobody else writes there meanwhile. What goes wrong costs
    a warning: the job goes on.
    """
    job = submission_id()
    if job is None:
        return
    try:
        asyncio.run(_note(job, facts))
    except Exception as error:  # the place is Ray's own, and may change
        log.warning("job %s: not noted in its metadata: %s (%s)", job, dict(facts), error)


async def _note(job: str, facts: Mapping[str, str]) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    store = JobInfoStorageClient(GcsClient(address=ray.get_runtime_context().gcs_address))
    known = await store.get_info(job)
    if known is None:
        raise LookupError("Ray does not know the job")
    await store.put_info(job, dataclasses.replace(known, metadata={**(known.metadata or {}), **facts}))
