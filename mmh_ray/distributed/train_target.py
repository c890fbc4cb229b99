"""Trains adapters of target sites on Ray: one task per site and sequence in parallel, and a target bundle per site."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from mmh_ray import tracking
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect, gpus_of_a_task
from mmh_ray.distributed.domains import usable
from mmh_ray.distributed.job_facts import note_in_job, ray_facts
from mmh_ray.distributed.run_storage import cited_place, open_storage
from mmh_ray.distributed.style_encoder import TrainedAggregator, aggregator_for
from mmh_ray.distributed.target_plan import TargetTask, plan_targets
from mmh_ray.distributed.target_run import SiteRun, send_left
from mmh_ray.distributed.target_storage import check_places, place_of, put_target
from mmh_ray.distributed.target_volumes import TargetVolumes
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.models.bundle import Bundle, bundle_files, load_bundle
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle
from mmh_ray.models.target.bundle import save_target
from mmh_ray.models.target.fine_tuner import TargetFineTuner, TunedAdapter, tune
from mmh_ray.progress import progress
from mmh_ray.shards import PreparedStore

log = logging.getLogger(__name__)

VALIDATION_BATCHES = 4
VALIDATION_KEY = 10**9
"""Key of the first validation batch, which no training step reaches."""


@dataclass(frozen=True)
class TrainedTarget:
    """Where the target of one site is stored."""

    site: str
    bundle: str
    """Target bundle, folder or URI."""
    model_uri: str
    """``models:/mmh-target-SITE/VERSION`` in the registry."""
    run_id: str
    """Id of the MLflow run."""
    validation: dict[str, dict[str, float]]
    """Validation losses of the best adapter, by sequence."""


@dataclass(frozen=True)
class TaskOutcome:
    """An adapter, the style of its site, and the description of the style encoder."""

    tuned: TunedAdapter
    style: SiteStyle
    encoder: dict[str, Any]


def train_targets(prepared: str, model: str, config: Config) -> list[TrainedTarget]:
    """Train and register a target for every site of ``config.target.site``; sites and sequences run in parallel.

    Parameters
    ----------
    prepared:
        Store of prepared volumes; images of split test are not used.
    model:
        Global model: bundle folder or ``models:/NAME@ALIAS``.

    Raises
    ------
    ConfigError
        If no site is named, or ``harmonize.inversion_depth`` is not 0.
    DataError
        As in :func:`plan_site`, if it fails for every site.
    ModelError
        If the global model cannot be loaded, or a target could not be planned, trained or published; the other targets
        are registered then.
    """
    if not config.target.site:
        raise ConfigError("no target site", "target.site=NAME or a list of names", "Name the target site.")
    if depth := config.harmonize.inversion_depth:
        remedy = "Train without it: adapters are trained for sampling that starts from noise."
        raise ConfigError(f"harmonize.inversion_depth={depth}", "0", remedy)
    check_places(config)
    connect()
    store = PreparedStore(prepared if "://" in prepared else str(Path(prepared).absolute()))
    folder, uri = tracking.resolve_model(model, config.tracking)
    bundle = load_bundle(folder)
    base = {"hash": bundle.hash, "uri": uri}
    tasks, failed = plan_targets(store, bundle, config)
    if not tasks:
        _raise_for(failed, {})
    known = [row for row in usable(store, "train") if row["sequence"] in bundle.config.model.sequences]
    aggregator = aggregator_for(store, known, config, bundle.config.grid.spacing_mm)
    tracking.configure(config.tracking)
    facts = {"data_hash": store.data_hash, "base_hash": base["hash"], "base_uri": base["uri"]}
    send_left(config)
    tasks_of_site = Counter(task.site for task in tasks)
    runs: dict[str, SiteRun] = {}
    finished: dict[str, TrainedTarget] = {}
    try:
        for site in tasks_of_site:
            runs[site] = SiteRun.start(site, store, config, facts | ray_facts())
        note_in_job({f"mlflow_run_id {site}": run.run_id for site, run in runs.items()})
        outcomes: dict[str, dict[str, tuple[TargetTask, TaskOutcome]]] = {}
        for task, outcome in _run(tasks, store.uri, folder, config, aggregator, runs):
            if isinstance(outcome, Exception):
                failed[task.site] = outcome
                continue
            of_site = outcomes.setdefault(task.site, {})
            of_site[task.sequence] = (task, outcome)
            if len(of_site) < tasks_of_site[task.site]:
                continue
            try:
                finished[task.site] = _publish(task.site, of_site, base, runs[task.site], config, aggregator)
            except Exception as error:
                log.error("target %s cannot be published: %s", task.site, error)
                failed[task.site] = error
    finally:
        for site in set(runs) - set(finished):
            runs[site].fail()
    _raise_for(failed, finished)
    return [finished[site] for site in config.target.site]


def _raise_for(failed: Mapping[str, Exception], finished: Mapping[str, TrainedTarget]) -> None:
    """Raise the errors of failed sites together, if any; if there is no target at all, the first error itself."""
    if not failed:
        return
    first_error = next(iter(failed.values()))
    if not finished:
        raise first_error
    received = "; ".join(f"target {site}: {error}" for site, error in failed.items())
    published = ", ".join(target.model_uri for target in finished.values())
    remedy = f"Registered: {published}. Train the others again with target.site=[{', '.join(failed)}]."
    raise ModelError(received, "an adapter of every target", remedy) from first_error


def train_adapter(
    task: TargetTask,
    store_uri: str,
    bundle: Bundle,
    config: Config,
    aggregator: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> TaskOutcome:
    """Train one adapter; runs in a Ray task, but needs no Ray.

    Parameters
    ----------
    aggregator:
        As in :func:`make_style_encoder`.
    on_step:
        Called after every step with its number, from 1, and its losses.
    """
    target = config.target
    encoder = make_style_encoder(config.style, bundle.config.grid.spacing_mm, aggregator)
    volumes = TargetVolumes(PreparedStore(store_uri), bundle, task.sequence, config)
    # The order matters: the site's volumes draw from the same random generators.
    images = volumes.of_site(task.training, target.restyles)
    validation_images = volumes.of_site(task.validation, 1)
    sources = volumes.of_sources(task.sources)
    validation_sources = volumes.of_sources(task.validation_sources)
    unchanged = images[:: target.restyles + 1]
    style = SiteStyle.fit(
        [volume.unified for volume in unchanged],
        [volume.scan for volume in unchanged],
        [volume.mask for volume in unchanged],
    )
    tuner = TargetFineTuner(bundle.model, style, encoder, target, config.harmonize).to(volumes.device)
    validation = []
    for index in range(VALIDATION_BATCHES):
        validation.append(volumes.draw(validation_images, validation_sources, VALIDATION_KEY + index))
    tuned = tune(tuner, lambda step: volumes.draw(images, sources, step), validation, on_step)
    return TaskOutcome(tuned, style, encoder.describe())


def _task(
    task: TargetTask,
    store_uri: str,
    files: dict[str, bytes],
    config: Config,
    aggregator: TrainedAggregator,
    outbox: tracking.MetricsOutbox,
) -> TaskOutcome:
    torch.set_num_threads(1)
    system = tracking.SystemMetrics(task.sequence)

    def on_step(step: int, losses: dict[str, float]) -> None:
        values = {f"{task.sequence}/{name}": loss for name, loss in losses.items()}
        outbox.add(step, values | system.due())

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        bundle = load_bundle(folder, "cuda" if torch.cuda.is_available() else "cpu")
    try:
        return train_adapter(
            task=task, store_uri=store_uri, bundle=bundle, config=config, aggregator=aggregator.state, on_step=on_step
        )
    finally:
        outbox.write()


def _run(
    tasks: list[TargetTask],
    store_uri: str,
    folder: Path,
    config: Config,
    aggregator: TrainedAggregator,
    runs: Mapping[str, SiteRun],
) -> Iterator[tuple[TargetTask, TaskOutcome | Exception]]:
    """Yield tasks and their outcomes as they finish.

    If a task fails, the other tasks of its site are cancelled, because a site is only published as a whole.
    """
    files = ray.put(bundle_files(folder))
    remote = ray.remote(num_cpus=1, num_gpus=gpus_of_a_task(), max_retries=2)(_task)
    pending: dict[ray.ObjectRef, TargetTask] = {}
    for task in tasks:
        reference = remote.remote(task, store_uri, files, config, aggregator, runs[task.site].outbox)
        pending[reference] = task
    with progress(len(tasks), "Training targets", "adapters") as advance:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                _cancel(task.site, pending)
                log.error("target %s %s: %s", task.site, task.sequence, error)
                yield task, getattr(error, "cause", None) or error
                continue
            advance(1, f"{task.site} {task.sequence}: {outcome.tuned.steps} steps")
            yield task, outcome


def _cancel(site: str, pending: dict[ray.ObjectRef, TargetTask]) -> None:
    """Cancel a site's tasks and remove them from the pending ones."""
    of_site = [reference for reference, task in pending.items() if task.site == site]
    for reference in of_site:
        ray.cancel(reference)
        del pending[reference]


def _publish(
    site: str,
    outcomes: Mapping[str, tuple[TargetTask, TaskOutcome]],
    base: Mapping[str, str],
    run: SiteRun,
    config: Config,
    aggregator: TrainedAggregator,
) -> TrainedTarget:
    """Bundle the adapters of a site, store the bundle and register it."""
    training: dict[str, Any] = {}
    styles: dict[str, SiteStyle] = {}
    tuned: dict[str, TunedAdapter] = {}
    validation: dict[str, dict[str, float]] = {}
    for sequence, (task, outcome) in outcomes.items():
        training[sequence] = task.as_facts()
        styles[sequence] = outcome.style
        tuned[sequence] = outcome.tuned
        validation[sequence] = outcome.tuned.validation
    training["style_encoder"] = outcome.encoder  # the same for all sequences
    training["aggregator"] = aggregator.figures

    storage_uri = config.target.storage
    storage, root = open_storage(storage_uri)
    name = tracking.target_model_name(site)
    place = place_of(root, site)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, name)
        save_target(
            path=local,
            site=site,
            base=base,
            styles=styles,
            tuned=tuned,
            config=config,
            training=training,
            aggregator=aggregator.state,
        )
        put_target(storage, local, place)
        model_uri = tracking.register(run.run_id, local, name, config.tracking)
    run.finish()
    cited = cited_place(storage_uri, root, place)
    return TrainedTarget(site, cited, model_uri, run.run_id, validation)
