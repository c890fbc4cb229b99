"""The batch job: an archive in, harmonized derivatives out; one actor per slot, one volume per call, a ledger row per image."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from mmh_ray import tracking
from mmh_ray.bids.derivatives import check_dataset, write_dataset_description
from mmh_ray.bids.entities import parse
from mmh_ray.bids.ledger import Journal, current_rows
from mmh_ray.bids.manifest import find_images
from mmh_ray.bids.status import RECORD, RunRecord, utc_now
from mmh_ray.config import Config, HarmonizeConfig, PrepareConfig, flatten, to_dict
from mmh_ray.distributed.actor_pool import Crew
from mmh_ray.distributed.cluster import connect, live_nodes
from mmh_ray.distributed.manifest import probe_all
from mmh_ray.distributed.metrics import MeasuredHarmonizeWorker, count_image, set_queue
from mmh_ray.distributed.prepare import check_row
from mmh_ray.distributed.task_pool import run_tasks
from mmh_ray.errors import ConfigError, DataError, RefusedError, data_error, naming_mask
from mmh_ray.harmonization.citation import write_citation
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.job import Job
from mmh_ray.harmonization.reference_target import target_of_scan
from mmh_ray.harmonization.target_domain import (
    Look,
    Row,
    check_names,
    check_places,
    input_hash,
    is_current,
    ledger_row,
    mark_shared_outputs,
    remove_stale,
    unknown_sequence,
)
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.imaging.volume import BYTES_PER_VOXEL, read_mask, read_volume
from mmh_ray.models.bundle import Bundle, bundle_files, load_bundle
from mmh_ray.models.target.bundle import SAMPLING, Target, load_target
from mmh_ray.progress import progress
from mmh_ray.provenance import check_place, code_version, hash_of, remove_partial, sha256_file
from mmh_ray.quality.run_report import write_cohort_report
from mmh_ray.stopping import stoppable, why

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
        If ``out`` holds the archive or lies in it elsewhere than below ``derivatives/``, holds what was made of another archive or
        cannot be written to, another run is writing there, or no image remains to be looked at.
    ModelError
        If the model or a target cannot be loaded, or a target was trained with another style backbone than the configured one.
    """
    rows, folder, facts, looks = _prepare(job)
    with stoppable(), _journal(job) as journal:
        tasks = _tasks(job, rows, journal.rows(), looks)
        record = _record(job, len(tasks) * len(looks), facts)
        _write_record(record, job.out)
        _write_citation(record, job.out, looks)
        failure: str | None = None
        try:
            connect()
            remove_partial(job.out)
            return _work_through(job, tasks, folder, facts, looks, journal)
        except BaseException as error:
            failure = why(error)
            raise
        finally:
            record = dataclasses.replace(record, finished=utc_now().isoformat(), failure=failure)
            _write_record(record, job.out)
            write_cohort_report(job.out, record, journal.rows().values(), job.config.quality)
            remove_partial(job.out)  # of actors that were ended or died


def plan(job: Job) -> list[Row]:
    """What :func:`harmonize` would do, per image: ``image_id``, ``source``, ``action`` (harmonize, skip, refuse, fail) and ``reason``.

    Every file is read, and what is to be harmonized is prepared and checked; nothing is written. What only the model's result shows (its
    flags) is not foreseen. Raises as :func:`harmonize` does.
    """
    rows, folder, facts, looks = _prepare(job)
    _check_writable(job.out)
    tasks = _tasks(job, rows, {row["image_id"]: row for row in current_rows(job.out)}, looks)
    probe_all([task for task in tasks if task["status"] == "ok"], BYTES_PER_VOXEL)
    bundle = load_bundle(folder)
    known = bundle.config.model.sequences
    planned = [(task, _planned(task, look, job, known, facts)) for task in tasks for look in looks]
    wanted = {task["image_id"]: task for task, row in planned if row["action"] == "harmonize"}
    amiss = _amiss(list(wanted.values()), bundle, job.config) if wanted else {}
    return [row | (amiss.get(task["image_id"], {}) if row["action"] == "harmonize" else {}) for task, row in planned]


def _amiss(tasks: list[Row], bundle: Bundle, config: Config) -> dict[str, Row]:
    """``action`` and ``reason`` of the images that cannot be prepared or must not be harmonized, by id."""
    harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
    settings, found = (bundle.config.grid, harmonizer.prepare, harmonizer.quality), dict[str, Row]()
    for image, error, _ in run_tasks(check_row, tasks, settings, "Checking", "images"):
        if error is not None:
            action = "refuse" if isinstance(error, RefusedError) else "fail"
            found[image["image_id"]] = {"action": action, "reason": str(data_error(error, image["uri"]))}
    return found


def _planned(task: Row, look: Look, job: Job, known: tuple[str, ...], facts: Row) -> Row:
    action, reason = "harmonize", unknown_sequence(task, known, look)
    if task["status"] != "ok":
        action, reason = "fail", task["reason"]
    elif reason:
        action = "refuse"
    else:
        try:
            check_places(Path(job.out, look.output(task, job.config.harmonize)), Path(job.out))
            digest = input_hash(task)
        except (DataError, OSError) as error:
            action, reason = "fail", str(data_error(error, task["uri"]))
        else:
            earlier = task["earlier"].get(look.name)
            action = "skip" if is_current(earlier, Path(job.out), digest, facts["model_hash"], look) else action
    return {"image_id": look.image_id(task), "source": task["uri"], "action": action, "reason": reason}


def _prepare(job: Job) -> tuple[list[Row], Path, Row, list[Look]]:
    """The images to look at, the model's folder, the facts that stand in each row, and what the images are to look like."""
    _check_output(job.bids, job.out)
    check_dataset(job.out, job.bids)
    folder, uri = tracking.resolve_model(job.model, job.config.tracking)
    found = find_images(job.bids, job.config.manifest.site_pattern, require_site=False)
    bundle = load_bundle(folder)  # what is wrong with it is said here, and not image by image
    _check_preparation(job.config, bundle.config)
    facts = {"model": uri, "model_hash": bundle.hash}
    rows, looks = _select(found, job), _looks(job, folder)
    mark_shared_outputs(rows, looks, job.config.harmonize)
    return rows, folder, facts, looks


def _looks(job: Job, folder: Path) -> list[Look]:
    """The unified domain, or the targets that the job names."""
    settings = to_dict(job.config.harmonize) | _INERT | {"prepare": _geometry(job.config.prepare)}
    settings["quality"] = to_dict(job.config.quality)  # decides what is refused and flagged
    if not job.targets and job.target_image is None:
        return [Look(None, hash_of(settings))]
    bundle = load_bundle(folder)
    found = (tracking.resolve_target(name, folder, job.config.tracking) for name in job.targets)
    targets = [load_target(*place, job.config.style) for place in found]
    if job.target_image is not None:
        targets.append(_target_of_image(job.target_image, bundle, job))
    for target in targets:
        target.attach(bundle)
        _warn_of_other_sampling(target, job.config.harmonize)
    looks = [Look(target, hash_of(settings | {"target": target.hash})) for target in targets]
    check_names([], looks, [], job.config.harmonize)
    return looks


def _warn_of_other_sampling(target: Target, settings: HarmonizeConfig) -> None:
    """A target that was trained under other sampling goes on; it is only no longer what was validated."""
    trained = target.sampling(settings)
    for name in SAMPLING:
        if getattr(trained, name) != getattr(settings, name):
            given = f"trained with harmonize.{name}={getattr(trained, name)}, used with {getattr(settings, name)}"
            log.warning("target %s: %s", target.site, given)


def _target_of_image(path: str, bundle: Bundle, job: Job) -> Target:
    entities, config = parse(path), job.config
    harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
    found = _mask_of(Path(path).resolve(), (*entities.folders, "anat"))
    mask = read_mask(found) if found else None
    about = entities.suffix, entities.image_id, sha256_file(path)
    with naming_mask(found):
        return target_of_scan(harmonizer, read_volume(path), *about, mask, config.style)


def _mask_of(scan: Path, folders: tuple[str, ...]) -> str | None:
    """The brain mask that the scan's own archive has of it; None too where the scan lies in no archive."""
    if scan.parts[-len(folders) - 1 : -1] != folders:
        return None
    rows = find_images(scan.parents[len(folders)], require_site=False)
    return next((row["mask_uri"] for row in rows if row["uri"] == str(scan)), None)


_INERT = {"slots": 0, "timeout_s": 0, "batch_slabs": 0}
"""Settings that change no outcome, and no voxel but for rounding, left out of the settings hash.

Fewer than eight slabs a batch move a voxel by up to 3e-6: the network's sums are then split otherwise. All else moves none.
"""


def _geometry(prepare: PrepareConfig) -> Row:
    """The part of the preparation that is the job's to choose; the rest is the model's."""
    return {"crop_neck": prepare.crop_neck, "register": prepare.register, "skull": prepare.skull}


def _check_preparation(config: Config, known: Config) -> None:
    """Refuse what would have no effect: but for :func:`_geometry` the preparation is the model's. A default counts as not given."""
    given, usual, used = map(flatten, (config, Config(), known))
    free = {f"prepare.{name}" for name in (*_geometry(config.prepare), "shard_volumes")}
    for key, value in given.items():
        if key.startswith(("grid.", "prepare.")) and key not in free and value not in (usual[key], used[key]):
            remedy = "Leave it out, or train a model on scans prepared so."
            raise ConfigError(f"{key}={value}", f"{used[key]}, with which the model was trained", remedy)


def _check_output(bids: str, out: str) -> None:
    if "://" in bids or "://" in out:
        raise ConfigError(f"{bids} -> {out}", "folders on a local or mounted disk", "Mount or copy the archive.")
    archive, target = Path(bids).resolve(), Path(out).resolve()
    inside = target.relative_to(archive).parts if target.is_relative_to(archive) else None
    if (inside is not None and (len(inside) < 2 or inside[0] != "derivatives")) or archive.is_relative_to(target):
        raise ConfigError(
            f"output {out} and archive {bids}, one in the other",
            "a folder of its own outside the archive or below its derivatives/",
            "Name another one.",
        )
    check_place(Path(out, RECORD), out, ConfigError)


@contextlib.contextmanager
def _journal(job: Job) -> Iterator[Journal]:
    """The folder's ledger, ours alone, in a folder that says what it is made of."""
    with contextlib.ExitStack() as stack:
        try:
            journal = stack.enter_context(Journal(job.out))
            write_dataset_description(job.out, job.bids, code_version())
        except OSError as error:
            raise ConfigError(
                f"output {job.out}: {error}", "a folder that can be written to", "Name another."
            ) from error
        yield journal


def _check_writable(out: str) -> None:
    """What :func:`_journal` would find out, without writing: at the folder, or at the nearest above it that is there."""
    there = next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        problem = "no right to write" if there.is_dir() else "not a folder"
        raise ConfigError(f"output {out}: {there}: {problem}", "a folder that can be written to", "Name another.")


def _select(rows: list[Row], job: Job) -> list[Row]:
    """Rows of the participants, sessions and sequences that the job names; ConfigError where one is not there."""
    _check_labels("participants", job.participants, {row["subject"] for row in rows}, "--participant-label")
    _check_labels("sessions", job.sessions, {row["session"] for row in rows}, "--session-label")
    kept = []
    for row in rows:
        is_wanted = (
            (not job.participants or row["subject"] in job.participants)
            and (not job.sessions or row["session"] in job.sessions)
            and (not job.sequences or row["sequence"] in job.sequences)
        )
        if is_wanted:
            kept.append(row)
    if not kept:
        expected = "images of these participants, sessions and sequences"
        raise ConfigError("no image left to harmonize", expected, "Check the filters.")
    return kept


def _check_labels(kind: str, labels: Iterable[str], known: set[str | None], flag: str) -> None:
    unknown = set(labels) - known
    if unknown:
        raise ConfigError(f"{kind} {sorted(unknown)}", f"{kind} of the archive", f"Check {flag}.")


def _tasks(job: Job, rows: list[Row], known: dict[str, Row], looks: Sequence[Look]) -> list[Row]:
    """Rows with what the ledger knows of them, by the look's name; ConfigError where two targets would share names."""
    check_names(rows, looks, known.values(), job.config.harmonize)

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
    except (DataError, OSError) as error:
        log.warning("%s: no record of the run (%s)", out, error)


def _write_citation(record: RunRecord, out: str, looks: Sequence[Look]) -> None:
    targets = [look.name for look in looks if look.name is not None]
    try:
        write_citation(record, out, targets)
    except (DataError, OSError) as error:
        log.warning("%s: no text to cite the run by (%s)", out, error)


def _work_through(
    job: Job, tasks: list[Row], folder: Path, facts: Row, looks: Sequence[Look], journal: Journal
) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress(len(tasks), "Harmonizing", "images"))
        found = stack.enter_context(contextlib.closing(_run(tasks, job, folder, facts, looks, lambda: advance(0))))
        for rows in found:
            for row in rows:
                if row["status"] in NO_RESULT:
                    look = next(look for look in looks if look.name == row["target"])
                    row = remove_stale(row, look, Path(job.out), job.config.harmonize)
                journal.append(row | {"model_hash": facts["model_hash"]})
                counts[row["status"]] += 1
            advance(1)
    return dict(counts)


def _run(
    rows: list[Row],
    job: Job,
    folder: Path,
    facts: Row,
    looks: Sequence[Look],
    ready: Callable[[], object] = lambda: None,
) -> Generator[list[Row]]:
    """Ledger rows of the images as they finish; ``ready`` is called whenever an actor has come up."""
    options, slots = _slots(job.config.harmonize, len(rows))
    files = ray.put(bundle_files(folder))
    shared = ray.put(list(looks))
    neighbours = -(-slots // live_nodes())  # actors are spread
    run = uuid.uuid4().hex[:4]  # an earlier run's actors may not have gone yet, and no two may have one name
    numbers = itertools.count(1)

    def hire() -> Any:
        actor = ray.remote(MeasuredHarmonizeWorker).options(**options, name=f"harmonize {run} {next(numbers)}")
        place = os.path.abspath(job.out)
        return actor.remote(HarmonizeWorker, files, job.config, place, facts, shared, neighbours)

    def failed(row: Row, reason: str) -> list[Row]:
        found = [ledger_row(row, look, "failed", reason) for look in looks]
        for lost in found:  # no actor was left to count it
            count_image("harmonize", lost)
        return found

    crew = Crew(hire, slots, options["max_concurrency"], job.config.harmonize.timeout_s, failed)
    return crew.run(rows, ready, lambda images: set_queue("harmonize", images))


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
