"""The batch job: an archive in, harmonized derivatives out; one actor per slot, one volume per call, a ledger row per image."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from mmh_ray import tracking
from mmh_ray.bids.derivatives import write_dataset_description
from mmh_ray.bids.entities import desc_of, parse
from mmh_ray.bids.ledger import Journal, current_rows
from mmh_ray.bids.manifest import find_images
from mmh_ray.bids.status import RunRecord, utc_now
from mmh_ray.config import HarmonizeConfig, PrepareConfig, to_dict
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.cohort_report import write_cohort_report
from mmh_ray.distributed.crew import Crew
from mmh_ray.distributed.job import Job
from mmh_ray.distributed.look import (
    Look,
    Row,
    input_hash,
    is_current,
    ledger_row,
    remove_stale,
    unknown_sequence,
)
from mmh_ray.distributed.manifest import probe_all
from mmh_ray.distributed.worker import HarmonizeWorker
from mmh_ray.errors import ConfigError
from mmh_ray.harmonizer import Harmonizer
from mmh_ray.imaging.volume import BYTES_PER_VOXEL, read_mask, read_volume
from mmh_ray.models.bundle import Bundle, bundle_hash, load_bundle
from mmh_ray.models.target_bundle import Target, load_target
from mmh_ray.progress import progress
from mmh_ray.provenance import code_version, hash_of, remove_partial, sha256_file
from mmh_ray.reference_target import target_of_scan

log = logging.getLogger(__name__)

MOST_ABREAST = 4
"""Images that an actor has at a time at most: each takes memory on the host."""

NO_RESULT = ("failed", "refused")
"""States of an image that has no derivative."""

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
    rows, folder, facts, looks = _prepare(job)
    connect()
    _make_folder(job)
    with stoppable(), Journal(job.out) as journal:
        remove_partial(job.out)
        tasks = _tasks(job, rows, journal.rows(), looks)
        record = _record(job, len(tasks) * len(looks), facts)
        _write_record(record, job.out)
        failure: str | None = None
        try:
            counts = _work_through(job, tasks, folder, facts, looks, journal)
            remove_partial(job.out)  # of an actor that was killed while it wrote
            return counts
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            record = dataclasses.replace(record, finished=utc_now().isoformat(), failure=failure)
            _write_record(record, job.out)
            write_cohort_report(job.out, record, journal.rows().values(), job.config.quality)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Make of SIGTERM, a batch system's word that the time is up, a KeyboardInterrupt; a second one is ignored while all is put in order.

    Only the main thread may say what becomes of a signal; elsewhere nothing changes.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt("stopped by SIGTERM; run again to go on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan(job: Job) -> list[Row]:
    """What :func:`harmonize` would do, per image: ``image_id``, ``source``, ``action`` (harmonize, skip, refuse, fail) and ``reason``.

    Every file is read; nothing is written. What only harmonizing shows (the quality checks) is not foreseen.
    """
    rows, folder, facts, looks = _prepare(job)
    tasks = _tasks(job, rows, {row["image_id"]: row for row in current_rows(job.out)}, looks)
    probe_all([task for task in tasks if task["status"] == "ok"], BYTES_PER_VOXEL)
    known = load_bundle(folder).config.model.sequences
    return [_planned(task, look, job, known, facts) for task in tasks for look in looks]


def _planned(task: Row, look: Look, job: Job, known: tuple[str, ...], facts: Row) -> Row:
    action, reason = "harmonize", unknown_sequence(task, known, look)
    if task["status"] != "ok":
        action, reason = "fail", task["reason"]
    elif reason:
        action = "refuse"
    else:
        try:
            digest = input_hash(task)
        except OSError as error:
            action, reason = "fail", f"{task['uri']}: {type(error).__name__}: {error}"
        else:
            earlier = task["earlier"].get(look.name)
            action = "skip" if is_current(earlier, Path(job.out), digest, facts["model_hash"], look) else action
    return {"image_id": look.image_id(task), "source": task["uri"], "action": action, "reason": reason}


def _prepare(job: Job) -> tuple[list[Row], Path, Row, list[Look]]:
    """The images to look at, the model's folder, the facts that stand in each row, and what the images are to look like."""
    _check_output(job.bids, job.out)
    folder, uri = tracking.resolve_model(job.model, job.config.tracking)
    found = find_images(job.bids, job.config.manifest.site_pattern, require_site=False)
    facts = {"model": uri, "model_hash": bundle_hash(folder)}
    return _select(found, job.participants, job.sequences), folder, facts, _looks(job, folder)


def _looks(job: Job, folder: Path) -> list[Look]:
    """The unified domain, or the targets that the job names."""
    settings = to_dict(job.config.harmonize) | _INERT | {"prepare": _geometry(job.config.prepare)}
    settings["quality"] = to_dict(job.config.quality)  # decides what is refused and flagged
    if not job.targets and job.target_image is None:
        return [Look(None, hash_of(settings))]
    bundle = load_bundle(folder)
    targets = [load_target(*tracking.resolve_target(name, folder, job.config.tracking)) for name in job.targets]
    if job.target_image is not None:
        targets.append(_target_of_image(job.target_image, bundle, job))
    for target in targets:
        target.attach(bundle)
    looks = [Look(target, hash_of(settings | {"target": target.hash})) for target in targets]
    if len({desc_of(look.name) for look in looks}) < len(looks):
        received = f"targets {', '.join(str(look.name) for look in looks)}"
        raise ConfigError(received, "targets whose letters and digits differ", "Harmonize them into different folders.")
    return looks


def _target_of_image(path: str, bundle: Bundle, job: Job) -> Target:
    entities, config = parse(path), job.config
    harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
    found = _mask_of(Path(path).resolve(), (*entities.folders, "anat"))
    mask = read_mask(found).data > 0.5 if found else None
    about = entities.suffix, entities.image_id, sha256_file(path)
    return target_of_scan(harmonizer, read_volume(path), *about, mask, config.style)


def _mask_of(scan: Path, folders: tuple[str, ...]) -> str | None:
    """The brain mask that the scan's own archive has of it; None too where the scan lies in no archive."""
    if scan.parts[-len(folders) - 1 : -1] != folders:
        return None
    rows = find_images(scan.parents[len(folders)], require_site=False)
    return next((row["mask_uri"] for row in rows if row["uri"] == str(scan)), None)


_INERT = {"slots": 0, "timeout_s": 0, "batch_slabs": 0}
"""Settings that change neither a voxel nor the outcome, left out of the settings hash."""


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


def _tasks(job: Job, rows: list[Row], known: dict[str, Row], looks: Sequence[Look]) -> list[Row]:
    """Rows with what the ledger knows of them, by the look's name."""

    def earlier(row: Row) -> dict[str | None, Row]:
        return {look.name: known[look.image_id(row)] for look in looks if look.image_id(row) in known}

    tasks = [{**row, "earlier": earlier(row)} for row in rows]
    if not job.retry_failed:
        return tasks
    return [task for task in tasks if any(found["status"] in NO_RESULT for found in task["earlier"].values())]


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


def _write_record(record: RunRecord, out: str) -> None:
    """A record that cannot be written (a full disk) costs no image, only a warning: the ledger has what was done."""
    try:
        record.write(out)
    except OSError as error:
        log.warning("%s: no record of the run (%s)", out, error)


def _work_through(
    job: Job, tasks: list[Row], folder: Path, facts: Row, looks: Sequence[Look], journal: Journal
) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with progress(len(tasks), "Harmonizing", "images") as advance:
        for rows in _run(tasks, job, folder, facts, looks):
            for row in rows:
                if row["status"] in NO_RESULT:
                    look = next(look for look in looks if look.name == row["target"])
                    remove_stale(row, look, Path(job.out), job.config.harmonize, facts["model_hash"])
                journal.append(row | {"model_hash": facts["model_hash"]})
                counts[row["status"]] += 1
            advance(1)
    return dict(counts)


def _run(rows: list[Row], job: Job, folder: Path, facts: Row, looks: Sequence[Look]) -> Iterator[list[Row]]:
    """Ledger rows of the images as they finish."""
    options, slots = _slots(job.config.harmonize, len(rows))
    files = ray.put({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    shared = ray.put(list(looks))
    worker = ray.remote(HarmonizeWorker).options(**options)

    def hire() -> Any:
        return worker.remote(files, job.config, os.path.abspath(job.out), facts, shared)

    def failed(row: Row, reason: str) -> list[Row]:
        return [ledger_row(row, look, "failed", reason) for look in looks]

    return Crew(hire, slots, options["max_concurrency"], job.config.harmonize.timeout_s, failed).run(rows)


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
