"""The batch job: an archive in, harmonized derivatives out; one actor per slot, one volume per call, a ledger row per image."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from mmh_ray import tracking
from mmh_ray.bids.derivatives import write_dataset_description
from mmh_ray.bids.entities import output_path, parse
from mmh_ray.bids.ledger import Journal, current_rows
from mmh_ray.bids.manifest import find_images
from mmh_ray.bids.status import RunRecord, utc_now
from mmh_ray.config import HarmonizeConfig, PrepareConfig, to_dict
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.cohort_report import write_cohort_report
from mmh_ray.distributed.job import Job
from mmh_ray.distributed.manifest import probe_all
from mmh_ray.distributed.worker import HarmonizeWorker, Row, is_current, ledger_row, template_space, unknown_sequence
from mmh_ray.errors import ConfigError
from mmh_ray.models.bundle import bundle_hash, load_bundle
from mmh_ray.progress import progress
from mmh_ray.provenance import code_version, hash_of, remove_partial

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Times an image is tried when the worker that had it died."""

MOST_ABREAST = 4
"""Images that an actor has at a time at most: each takes memory on the host."""

VERSIONS = ("ray", "torch", "diffusers", "SimpleITK", "nibabel", "numpy")
"""Packages whose version the record of a run holds."""


def harmonize(job: Job) -> dict[str, int]:
    """Harmonize every image of a BIDS archive that the model knows; rerunning does what is missing or changed.

    Returns
    -------
    Number of images by status: done, skipped, failed, refused.

    Raises
    ------
    ConfigError
        If ``out`` is the archive itself, lies inside one of its subjects or cannot be written to, another run is writing there, or no
        image remains to be looked at.
    ModelError
        If the model cannot be loaded.
    """
    rows, folder, facts = _prepare(job)
    connect()
    _make_folder(job)
    with Journal(job.out) as journal:
        remove_partial(job.out)
        tasks = _tasks(job, rows, journal.rows())
        record = _record(job, len(tasks), facts)
        record.write(job.out)
        failure: str | None = None
        try:
            return _work_through(job, tasks, folder, facts, journal)
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            record = dataclasses.replace(record, finished=utc_now().isoformat(), failure=failure)
            record.write(job.out)
            write_cohort_report(job.out, record, journal.rows().values(), job.config.quality)


def plan(job: Job) -> list[Row]:
    """What :func:`harmonize` would do, per image: ``image_id``, ``source``, ``action`` (harmonize, skip, refuse, fail) and ``reason``.

    Every file is read; nothing is written. What only harmonizing shows (memory, the quality checks) is not foreseen.
    """
    rows, folder, facts = _prepare(job)
    tasks = _tasks(job, rows, {row["image_id"]: row for row in current_rows(job.out)})
    probe_all([task for task in tasks if task["status"] == "ok"])
    known = load_bundle(folder).config.model.sequences
    return [_planned(task, job, known, facts) for task in tasks]


def _planned(task: Row, job: Job, known: tuple[str, ...], facts: Row) -> Row:
    action, reason = "harmonize", unknown_sequence(task, known)
    if task["status"] != "ok":
        action, reason = "fail", task["reason"]
    elif reason:
        action = "refuse"
    else:
        target = Path(job.out) / output_path(parse(task["uri"]), template_space(job.config.harmonize))
        action = "skip" if is_current(task["earlier"], target, task["sha256"], facts) else "harmonize"
    return {"image_id": task["image_id"], "source": task["uri"], "action": action, "reason": reason}


def _prepare(job: Job) -> tuple[list[Row], Path, Row]:
    """The images to look at, the model's folder, and the facts that stand in each row."""
    _check_output(job.bids, job.out)
    folder, uri = tracking.resolve_model(job.model, job.config.tracking)
    found = find_images(job.bids, job.config.manifest.site_pattern, require_site=False)
    settings = to_dict(job.config.harmonize) | _INERT | {"prepare": _geometry(job.config.prepare)}
    facts = {"model": uri, "model_hash": bundle_hash(folder), "settings_hash": hash_of(settings)}
    return _select(found, job.participants, job.sequences), folder, facts


_INERT = {"slots": 0, "timeout_s": 0, "batch_slabs": 0}
"""Settings that do not change a voxel, left out of the settings hash."""


def _geometry(prepare: PrepareConfig) -> Row:
    """The part of the preparation that is the job's to choose; the rest is the model's."""
    return {"crop_neck": prepare.crop_neck, "register": prepare.register, "skull": prepare.skull}


def _check_output(bids: str, out: str) -> None:
    if "://" in bids or "://" in out:
        raise ConfigError(f"{bids} -> {out}", "folders on a local or mounted disk", "Mount or copy the archive.")
    archive, target = Path(bids).resolve(), Path(out).resolve()
    inside = target.relative_to(archive).parts if target.is_relative_to(archive) else None
    if inside is not None and (not inside or inside[0] != "derivatives"):
        raise ConfigError(
            f"output {out} in archive {bids}",
            "a folder outside the archive or below its derivatives/",
            "Name another one.",
        )


def _make_folder(job: Job) -> None:
    try:
        write_dataset_description(job.out, job.bids, code_version())
    except OSError as error:
        raise ConfigError(f"output {job.out}: {error}", "a folder that can be written to", "Name another.") from error


def _select(rows: list[Row], participants: Iterable[str], sequences: Iterable[str]) -> list[Row]:
    subjects, suffixes = set(participants), set(sequences)
    unknown = subjects - {row["subject"] for row in rows}
    if unknown:
        raise ConfigError(f"participants {sorted(unknown)}", "subjects of the archive", "Check --participant-label.")
    kept = [
        row
        for row in rows
        if (not subjects or row["subject"] in subjects) and (not suffixes or row["sequence"] in suffixes)
    ]
    if not kept:
        raise ConfigError(
            "no image left to harmonize", "images of these participants and sequences", "Check the filters."
        )
    return kept


def _tasks(job: Job, rows: list[Row], earlier: dict[str, Row]) -> list[Row]:
    """Rows with what the ledger knows of them."""
    tasks = [{**row, "earlier": earlier.get(row["image_id"])} for row in rows]
    if not job.retry_failed:
        return tasks
    return [task for task in tasks if task["earlier"] and task["earlier"]["status"] in ("failed", "refused")]


def _record(job: Job, images: int, facts: Row) -> RunRecord:
    chosen = to_dict(job.config)
    settings = {
        "harmonize": chosen["harmonize"],
        "prepare": _geometry(job.config.prepare),
        "quality": chosen["quality"],
    }
    return RunRecord(
        source=str(Path(job.bids).resolve()),
        model=facts["model"],
        model_hash=facts["model_hash"],
        version=code_version(),
        images=images,
        started=utc_now().isoformat(),
        settings=settings,
        versions={name: version(name) for name in VERSIONS},
    )


def _work_through(job: Job, tasks: list[Row], folder: Path, facts: Row, journal: Journal) -> dict[str, int]:
    counts: Counter[str] = Counter()
    hashes = {key: facts[key] for key in ("model_hash", "settings_hash")}
    with progress(len(tasks), "Harmonizing", "images") as advance:
        for row in _run(tasks, job, folder, facts):
            journal.append(row | hashes)
            counts[row["status"]] += 1
            advance(1)
    return dict(counts)


def _run(rows: list[Row], job: Job, folder: Path, facts: Row) -> Iterator[Row]:
    """Ledger rows as the images finish. A worker that dies costs the images it had one attempt each; the others go on."""
    settings, waiting = job.config.harmonize, deque(rows)
    options, slots = _slots(settings, len(rows))
    files = ray.put({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    attempts: Counter[str] = Counter()
    busy: dict[ray.ObjectRef, tuple[Any, Row]] = {}

    def hire() -> Any:
        worker = ray.remote(HarmonizeWorker).options(**options)
        return worker.remote(files, job.config, os.path.abspath(job.out), facts)

    def may_start(worker: Any) -> bool:
        """An image whose worker died works alone: if that one dies too, no other image is to blame, nor to pay."""
        held = [row for other, row in busy.values() if other is worker]
        suspects = [row for row in (*held, waiting[0]) if attempts[row["image_id"]]]
        return len(held) < (1 if suspects else options["max_concurrency"])

    crew = [hire() for _ in range(slots)]
    while waiting or busy:
        for worker in crew * options["max_concurrency"]:
            if waiting and may_start(worker):
                row = waiting.popleft()
                busy[worker.harmonize.remote(row)] = (worker, row)
        finished, _ = ray.wait(list(busy), timeout=settings.timeout_s)
        if not finished:
            yield from _give_up(busy, waiting, settings.timeout_s)
            return
        worker, row = busy.pop(finished[0])
        try:
            yield ray.get(finished[0])
        except ray.exceptions.RayActorError as error:
            crew = [hire() if member is worker else member for member in crew]
            attempts[row["image_id"]] += 1
            if attempts[row["image_id"]] < ATTEMPTS:
                waiting.appendleft(row)
            else:
                yield ledger_row(row, "failed", f"the worker died {ATTEMPTS} times on this image ({error})")


def _give_up(busy: dict[ray.ObjectRef, tuple[Any, Row]], waiting: Iterable[Row], seconds: float) -> Iterator[Row]:
    resources = ray.available_resources()
    reason = (
        f"nothing finished for {seconds:g} s with {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs free; "
        "run again when the cluster has recovered, or raise harmonize.timeout_s"
    )
    for worker, row in busy.values():
        ray.kill(worker)
        yield ledger_row(row, "failed", reason)
    for row in waiting:
        yield ledger_row(row, "failed", reason)


def _slots(settings: HarmonizeConfig, images: int) -> tuple[dict[str, Any], int]:
    """Resources of an actor, with the images that it has at a time, and how many actors to start.

    An actor has one image more for every further CPU: the model waits for no preparation and no file, and no CPU for the model.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    slots = min(settings.slots or gpus or max(1, cpus // 2), images)
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
    abreast = min(MOST_ABREAST, max(1, cpus // max(1, slots)))
    return options | {"scheduling_strategy": "SPREAD", "max_concurrency": abreast}, slots
