"""Harmonizes an archive on a pool of actors: one volume per call, and one ledger row per image and target domain."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import ray

from mmh_ray.bids.derivatives import ADDED, DESCRIPTION, LABELS, write_dataset_description, write_descriptions
from mmh_ray.bids.ledger import Journal, current_rows
from mmh_ray.bids.output_folder import OutputFolder, output_folder
from mmh_ray.bids.rows import NO_RESULT, LedgerRow, Problem, Status, problem_of
from mmh_ray.bids.status import RECORD, RunRecord, utc_now
from mmh_ray.config import Config, HarmonizeConfig
from mmh_ray.distributed.actor_pool import ActorPool
from mmh_ray.distributed.cluster import connect, describe_place, live_nodes
from mmh_ray.distributed.job_facts import note_in_job, ray_facts
from mmh_ray.distributed.manifest import probe_all
from mmh_ray.distributed.metrics import MeasuredHarmonizeWorker, count_image, set_queue
from mmh_ray.distributed.prepare import PrepareSettings, check_row
from mmh_ray.distributed.task_pool import map_unordered
from mmh_ray.errors import ConfigError, DataError, RefusedError, data_error
from mmh_ray.harmonization.citation import CITATION, write_citation
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.harmonization.job import Job, Task
from mmh_ray.harmonization.memory import Workers, largest_image, within
from mmh_ray.harmonization.outputs import check_places, input_hash, is_current, ledger_row, remove_stale
from mmh_ray.harmonization.run import RunInputs, gather_inputs
from mmh_ray.harmonization.target_domain import TargetDomain, describe_labels
from mmh_ray.harmonization.worker import HarmonizeWorker
from mmh_ray.imaging.volume import BYTES_PER_VOXEL
from mmh_ray.models.bundle import Bundle, bundle_files, load_bundle
from mmh_ray.object_store import is_remote
from mmh_ray.progress import progress
from mmh_ray.provenance import code_version, remove_partial
from mmh_ray.quality.run_report import write_report_of
from mmh_ray.stopping import end_reason, stoppable
from mmh_ray.tracking.archive_run import ArchiveRun, Outcome

log = logging.getLogger(__name__)

MOST_IMAGES_PER_ACTOR = 4
"""Most images that an actor has at a time by default: each takes memory on the host."""


def harmonize(job: Job) -> dict[str, int]:
    """Harmonize every image of a BIDS archive whose sequence the model knows; a rerun does what is missing or changed.

    Returns
    -------
    Number of images by status: done, skipped, failed, refused.

    Raises
    ------
    ConfigError
        As in :func:`~mmh_ray.harmonization.run.gather_inputs`; if ``out`` cannot be written to, or another run is
        writing there.
    ModelError
        If the model or a target cannot be loaded, or the configured style backbone is not the one that a target was
        trained with.
    """
    with output_folder(job.out) as output:
        folder = output.folder
        inputs = gather_inputs(job, folder)
        with stoppable(), _journal(job, output) as journal:
            tasks = inputs.tasks(job, journal.rows())
            record = inputs.record(job, len(tasks) * len(inputs.domains))
            _write_record(record, output)
            _write_citation(record, output, inputs.domains)
            _write_descriptions(job, tasks, inputs, journal, output)
            failure: str | None = None
            archive_run: ArchiveRun | None = None
            try:
                connect()
                archive_run = ArchiveRun.start(
                    job.config, record, ray_facts(), lambda run_id: note_in_job({"mlflow_run_id": run_id})
                )
                remove_partial(folder)
                return _work_through(job, tasks, inputs, journal, output)
            except BaseException as error:
                failure = end_reason(error)
                raise
            finally:
                record = dataclasses.replace(record, finished=utc_now().isoformat(), failure=failure)
                _write_record(record, output)
                write_report_of(output, record, journal.rows().values(), job.config.quality)
                remove_partial(folder)  # of actors that were ended or died
                if archive_run is not None:
                    archive_run.finish(Outcome(record, list(journal.rows().values()), str(folder)))


class PlannedImage(TypedDict):
    """The action of a run for one image and one target domain."""

    image_id: str
    source: str
    action: str
    """``harmonize``, ``skip``, ``refuse`` or ``fail``."""
    reason: str | None


def plan(job: Job) -> list[PlannedImage]:
    """What :func:`harmonize` would do with each image, and why; nothing is written.

    Every file is read, and images to be harmonized are prepared and checked. Flags are not predicted, because they need
    the model's output. Raises as :func:`harmonize` does.
    """
    with output_folder(job.out) as output:
        inputs = gather_inputs(job, output.folder)
        _check_writable(output.folder)
        ledger = {row["image_id"]: row for row in current_rows(output.folder)}
        tasks = inputs.tasks(job, ledger)
        usable = [task for task in tasks if task["status"] == Status.OK]
        probe_all(usable, BYTES_PER_VOXEL)
        bundle = load_bundle(inputs.model_folder)
        planned: list[PlannedImage] = []
        for task in tasks:
            for domain in inputs.domains:
                action, problem = _action(task, domain, job, inputs, bundle.config.model.sequences, output)
                planned.append(
                    {
                        "image_id": domain.ledger_id(task["image_id"]),
                        "source": task["uri"],
                        "action": action,
                        "reason": problem and problem.text,
                    }
                )
    to_harmonize = {image["source"] for image in planned if image["action"] == "harmonize"}
    to_check = [task for task in tasks if task["uri"] in to_harmonize]
    problems = find_problems(to_check, bundle, job.config) if to_check else {}
    for image in planned:
        if image["action"] == "harmonize" and image["source"] in problems:
            image["action"], image["reason"] = problems[image["source"]]
    return planned


def _action(
    task: Task,
    domain: TargetDomain,
    job: Job,
    inputs: RunInputs,
    model_sequences: tuple[str, ...],
    output: OutputFolder,
) -> tuple[str, Problem | None]:
    """The action for an image, as far as it is known before the image is prepared."""
    if task["status"] != Status.OK:
        return "fail", problem_of(task)
    refusal = domain.unknown_sequence(task["sequence"], model_sequences)
    if refusal is not None:
        return "refuse", Problem.of(refusal)
    out = output.folder
    try:
        check_places(out / domain.output(task["uri"], job.config.harmonize), out)
        digest = input_hash(task)
    except (DataError, OSError) as error:
        return "fail", Problem.of(data_error(error, task["uri"]))
    earlier = task["earlier"].get(domain.name)
    if is_current(earlier, out, digest, inputs.model.hash, domain, output.stored):
        return "skip", None
    return "harmonize", None


def find_problems(tasks: list[Task], bundle: Bundle, config: Config) -> dict[str, tuple[str, str]]:
    """Prepare and check images; returns ``refuse`` or ``fail`` and the reason, by file, for those with a problem."""
    harmonizer = Harmonizer(bundle, config.harmonize, config.prepare, config.quality)
    settings = PrepareSettings(bundle.config.grid, harmonizer.prepare, harmonizer.quality)
    problems: dict[str, tuple[str, str]] = {}
    for checked in map_unordered(check_row, tasks, (settings,), "Checking", "images"):
        error = checked.result
        if error is not None:
            action = "refuse" if isinstance(error, RefusedError) else "fail"
            uri = checked.item["uri"]
            problems[uri] = (action, str(data_error(error, uri)))
    return problems


@contextlib.contextmanager
def _journal(job: Job, output: OutputFolder) -> Iterator[Journal]:
    """Lock and open the ledger of the output folder, and write the folder's dataset description."""
    with contextlib.ExitStack() as stack:
        try:
            journal = stack.enter_context(output.journal())
            write_dataset_description(output.folder, job.bids, code_version())
            output.publish(DESCRIPTION, *(name for name in ADDED if not output.has(name)))
        except OSError as error:
            received = f"output {job.out}: {error}"
            raise ConfigError(received, "a folder that can be written to", "Name another.") from error
        yield journal


def _check_writable(out: Path) -> None:
    """Check without writing that :func:`_journal` could write to a folder, or to its nearest existing parent."""
    folder = out.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        problem = "not a folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        problem = "no right to write"
    else:
        return
    raise ConfigError(f"output {out}: {folder}: {problem}", "a folder that can be written to", "Name another.")


def _write_record(record: RunRecord, output: OutputFolder) -> None:
    """Write the run's record; if that fails (a full disk), only warn, because the ledger holds the results."""
    try:
        record.write(output.folder)
        output.publish(RECORD)
    except (DataError, OSError) as error:
        log.warning("%s: no record of the run (%s)", output.place, error)


def _write_citation(record: RunRecord, output: OutputFolder, domains: Sequence[TargetDomain]) -> None:
    targets = [domain.name for domain in domains if domain.name is not None]
    try:
        write_citation(record, output.folder, targets)
        output.publish(CITATION)
    except (DataError, OSError) as error:
        log.warning("%s: no text to cite the run by (%s)", output.place, error)


def _write_descriptions(
    job: Job, tasks: Sequence[Task], inputs: RunInputs, journal: Journal, output: OutputFolder
) -> None:
    """Write the table of the labels in file names, for the outputs of earlier runs and possible ones of this run."""
    outputs = [(row["output"], row["target"]) for row in journal.rows().values() if row["output"]]
    for task in tasks:
        if task["status"] == Status.OK:
            for domain in inputs.domains:
                outputs.append((str(domain.output(task["uri"], job.config.harmonize)), domain.name))
    try:
        write_descriptions(output.folder, describe_labels(outputs))
        output.publish(LABELS)
    except (DataError, OSError) as error:
        log.warning("%s: no table of the labels after desc- (%s)", output.place, error)


def _work_through(
    job: Job, tasks: list[Task], inputs: RunInputs, journal: Journal, output: OutputFolder
) -> dict[str, int]:
    """Harmonize the images and record each when it has finished; returns the number of rows by status."""
    counts: Counter[str] = Counter()
    domain_of = {domain.name: domain for domain in inputs.domains}
    with (
        progress(len(tasks), "Harmonizing", "images") as advance,
        contextlib.closing(run_pool(tasks, job, inputs, on_actor_ready=lambda: advance(0))) as finished_images,
    ):
        for rows in finished_images:
            for row in rows:
                if row["status"] in NO_RESULT:
                    domain = domain_of[row["target"]]
                    row = remove_stale(row, domain, output.folder, job.config.harmonize, output.stored)
                row["model_hash"] = inputs.model.hash
                journal.append(row)
                counts[row["status"]] += 1
            advance(1)
    return dict(counts)


def run_pool(
    tasks: list[Task],
    job: Job,
    inputs: RunInputs,
    on_actor_ready: Callable[[], object] = lambda: None,
) -> Generator[list[LedgerRow]]:
    """Harmonize images on a pool of actors; yields the ledger rows of each image when it has finished.

    Close the generator to stop the actors.

    Parameters
    ----------
    on_actor_ready:
        Called each time an actor has started.
    """
    layout = pool_layout(job.config.harmonize, tasks)
    files = ray.put(bundle_files(inputs.model_folder))
    domains = ray.put(list(inputs.domains))
    actors_per_node = -(-layout.actors // live_nodes())  # rounded up: actors are spread
    run_name = uuid.uuid4().hex[:4]  # actors of an earlier run may still exist, and names must differ
    numbers = itertools.count(1)
    out = job.out if is_remote(job.out) else os.path.abspath(job.out)
    actor_class = ray.remote(MeasuredHarmonizeWorker)

    def start_actor() -> Any:
        actor = actor_class.options(**layout.actor_options, name=f"harmonize {run_name} {next(numbers)}")
        return actor.remote(HarmonizeWorker, files, job.config, out, inputs.model, domains, actors_per_node)

    def failed(task: Task, problem: Problem) -> list[LedgerRow]:
        rows = [ledger_row(task, domain, Status.FAILED, problem) for domain in inputs.domains]
        for row in rows:  # the actor, which counts the others, is gone
            count_image("harmonize", row)
        return rows

    pool = ActorPool(
        start_actor,
        size=layout.actors,
        images_per_actor=layout.images_per_actor,
        timeout_s=job.config.harmonize.timeout_s,
        wait_s=job.config.harmonize.wait_s,
        place=lambda: describe_place(layout.needs),
        failed=failed,
    )
    return pool.run(tasks, on_actor_ready, lambda images: set_queue("harmonize", images))


class PoolLayout(NamedTuple):
    """How many actors to start, how many images each has at a time, and what an actor needs of a node."""

    actors: int
    images_per_actor: int
    needs: dict[str, float]
    hides_gpus: bool

    @property
    def actor_options(self) -> dict[str, Any]:
        """Ray's options of an actor."""
        options: dict[str, Any] = {
            "num_cpus": self.needs["CPU"],
            "num_gpus": self.needs["GPU"],
            "scheduling_strategy": "SPREAD",
            "max_concurrency": self.images_per_actor,
        }
        if self.hides_gpus:  # Ray shows all GPUs of a node to an actor that requested none
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return options


def pool_layout(settings: HarmonizeConfig, tasks: Sequence[Task]) -> PoolLayout:
    """The actors for these images on this cluster.

    An actor has one image for each of its CPUs, so that the network does not wait for prepared images. Several actors
    may share a GPU. ``harmonize.memory_gb`` limits actors and images, which is logged.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    cpus = max(1, int(resources.get("CPU", 1)))
    gpu_share = settings.gpus_per_actor
    if gpu_share is None:
        gpu_share = 1.0 if gpus else 0.0
    slots = settings.slots
    if not slots and gpu_share:
        actors_per_gpu = int(1 / gpu_share)  # an actor cannot be split between GPUs
        slots = min(gpus * actors_per_gpu, cpus)
    actors = min(slots or max(1, cpus // 2), len(tasks))
    cpus_per_actor = cpus // max(1, actors)
    images_per_actor = settings.images_per_actor or min(MOST_IMAGES_PER_ACTOR, max(1, cpus_per_actor))
    if settings.memory_gb and actors:
        actors, images_per_actor = _within_memory(settings.memory_gb, tasks, Workers(actors, images_per_actor))
    hides_gpus = settings.gpus_per_actor == 0
    return PoolLayout(actors, images_per_actor, {"CPU": 1.0, "GPU": gpu_share}, hides_gpus)


def _within_memory(memory_gb: float, tasks: Sequence[Task], unlimited: Workers) -> Workers:
    """Reduce workers and images at a time until they fit into the memory of each machine."""
    nodes = live_nodes()
    per_node = Workers(-(-unlimited.number // nodes), unlimited.images_each)  # rounded up: actors are spread
    largest = largest_image(tasks)
    if not largest:  # no usable image: nothing will be read
        return unlimited
    fitting = within(memory_gb, largest, per_node)
    workers = Workers(min(unlimited.number, fitting.number * nodes), fitting.images_each)
    log.info(
        "memory of %g GB a machine: at most %d images at a time, %d in each of %d workers "
        "(the largest takes up to %.1f GB)",
        memory_gb,
        workers.number * workers.images_each,
        workers.images_each,
        workers.number,
        largest / 1e9,
    )
    return workers
