"""Stage 2 on Ray: one task per target site and sequence, side by side on whatever the cluster has; MLflow, and a target bundle per site."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from mmh_ray import tracking
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.datasets import usable
from mmh_ray.distributed.job_facts import note_in_job, ray_facts
from mmh_ray.distributed.style_encoder import TrainedAggregator, aggregator_for
from mmh_ray.distributed.target_run import SiteRun, send_left
from mmh_ray.distributed.target_storage import check_places, place_of, put_target
from mmh_ray.distributed.train import open_storage
from mmh_ray.errors import ConfigError, DataError, ModelError
from mmh_ray.imaging.preprocess import bias_step
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.bundle import Bundle, bundle_files, load_bundle
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle
from mmh_ray.models.target.bundle import save_target
from mmh_ray.models.target.fine_tuner import (
    TargetBatch,
    TargetFineTuner,
    TunedAdapter,
    UnifiedVolume,
    batch_of,
    tune,
)
from mmh_ray.object_store import join_uri
from mmh_ray.progress import progress
from mmh_ray.shards import PreparedStore

log = logging.getLogger(__name__)

LEAST_IMAGES, LEAST_SOURCES = 3, 2
"""Images of the target, and of other sites, below which no adapter is trained."""

VALIDATION_BATCHES = 4

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedTarget:
    """Where the outcome of one site lies."""

    site: str
    bundle: str
    """Target bundle, folder or URI."""
    model_uri: str
    """``models:/mmh-target-SITE/VERSION`` in the registry."""
    run_id: str
    """MLflow run."""
    validation: dict[str, dict[str, float]]
    """Sequence to validation losses of the best adapter."""


@dataclass(frozen=True)
class TargetTask:
    """What one adapter is trained from: index rows of the site's images and of source images, and of those of both that are held back."""

    site: str
    sequence: str
    training: tuple[Row, ...]
    validation: tuple[Row, ...]
    sources: tuple[Row, ...]
    validation_sources: tuple[Row, ...]

    def as_facts(self) -> dict[str, list[str]]:
        """Image ids, for the target bundle."""
        names = {"images": self.training, "validation_images": self.validation}
        names |= {"sources": self.sources, "validation_sources": self.validation_sources}
        return {key: [row["image_id"] for row in rows] for key, rows in names.items()}


@dataclass(frozen=True)
class TaskOutcome:
    """An adapter, the style it was trained for, and the encoder that described style."""

    tuned: TunedAdapter
    style: SiteStyle
    encoder: dict[str, Any]


def train_targets(prepared: str, model: str, config: Config) -> list[TrainedTarget]:
    """Train and register an adapter for every site of ``config.target.site``; all its sequences, all sites side by side.

    Parameters
    ----------
    prepared:
        Store of prepared volumes; images of split test are never looked at.
    model:
        Global model: bundle folder or ``models:/NAME@ALIAS``.

    Raises
    ------
    ConfigError
        If no site is named, or ``harmonize.inversion_depth`` is not 0.
    DataError
        As :func:`plan_site`, if that is so of every site.
    ModelError
        If the global model cannot be loaded, or a target could not be planned, trained or published; the other targets are registered
        then.
    """
    if not config.target.site:
        raise ConfigError(
            "no target site", "target.site=NAME or a list of names", "Name the site whose look is wanted."
        )
    if depth := config.harmonize.inversion_depth:
        remedy = "Train without it: an adapter learns on sampling that starts from noise."
        raise ConfigError(f"harmonize.inversion_depth={depth}", "0", remedy)
    check_places(config)
    connect()
    store = PreparedStore(prepared if "://" in prepared else str(Path(prepared).absolute()))
    folder, uri = tracking.resolve_model(model, config.tracking)
    bundle = load_bundle(folder)
    base = {"hash": bundle.hash, "uri": uri}
    tasks, failed = _plan(store, bundle, config)
    if not tasks:
        _raise_for(failed, {})
    known = [row for row in usable(store, "train") if row["sequence"] in bundle.config.model.sequences]
    aggregator = aggregator_for(store, known, config, bundle.config.grid.spacing_mm)
    tracking.configure(config.tracking)
    facts = {"data_hash": store.data_hash, "base_hash": base["hash"], "base_uri": base["uri"]}
    send_left(config)
    runs: dict[str, SiteRun] = {}
    finished: dict[str, TrainedTarget] = {}
    try:
        for site in dict.fromkeys(task.site for task in tasks):
            runs[site] = SiteRun.start(site, store, config, facts | ray_facts())
        note_in_job({f"mlflow_run_id {site}": run.run_id for site, run in runs.items()})
        outboxes = {site: run.outbox for site, run in runs.items()}
        outcomes: dict[str, dict[str, tuple[TargetTask, TaskOutcome]]] = {}
        for task, outcome in _run(tasks, store.uri, folder, config, aggregator, outboxes):
            if isinstance(outcome, Exception):
                failed[task.site] = outcome
                continue
            own = outcomes.setdefault(task.site, {})
            own[task.sequence] = (task, outcome)
            if len(own) == sum(other.site == task.site for other in tasks):
                try:
                    finished[task.site] = _publish(task.site, own, base, runs[task.site], config, aggregator)
                except Exception as error:
                    log.error("target %s cannot be published: %s", task.site, error)
                    failed[task.site] = error
    finally:
        for site in set(runs) - set(finished):
            runs[site].fail()
    _raise_for(failed, finished)
    return [finished[site] for site in config.target.site]


def _plan(store: PreparedStore, bundle: Bundle, config: Config) -> tuple[list[TargetTask], dict[str, Exception]]:
    """Tasks of every site that can be trained, and why the others cannot."""
    tasks, failed = list[TargetTask](), dict[str, Exception]()
    for site in config.target.site:
        try:
            tasks += plan_site(store, site, bundle, config)
        except DataError as error:
            log.error("target %s: %s", site, error)
            failed[site] = error
    return tasks, failed


def _raise_for(failed: Mapping[str, Exception], finished: Mapping[str, TrainedTarget]) -> None:
    if failed and not finished:
        raise next(iter(failed.values()))
    if failed:
        received = "; ".join(f"target {site}: {error}" for site, error in failed.items())
        published = ", ".join(target.model_uri for target in finished.values())
        remedy = f"Those are registered; train again with target.site=[{', '.join(failed)}]."
        raise ModelError(received, f"an adapter of every target, as of {published}", remedy) from next(
            iter(failed.values())
        )


def plan_site(store: PreparedStore, site: str, bundle: Bundle, config: Config) -> list[TargetTask]:
    """A task per sequence of which there are images enough: some of the site to train on, about a fifth to validate on, sources of other
    sites. A sequence that is left out is logged with the reason.

    Raises
    ------
    DataError
        If the store was not prepared as the model's own data, has no such site, or too few images of every sequence.
    """
    entries = [entry for split in ("train", "val") for entry in usable(store, split)]
    _check_preparation(store, entries, bundle.config)
    sites = sorted({entry["site"] for entry in entries})
    if site not in sites:
        raise DataError(f"target.site={site}", f"a site of the store: {', '.join(sites)}", "Check the name.")
    tasks, short = list[TargetTask](), list[str]()
    for sequence in bundle.config.model.sequences:
        own = [entry for entry in entries if entry["sequence"] == sequence]
        everyone = sorted((entry for entry in own if entry["site"] == site), key=lambda entry: entry["image_id"])
        images = _drawn(everyone, config.target.images, config.target.seed)
        sources = _spread([entry for entry in own if entry["site"] != site], config.target.sources)
        if len(images) < LEAST_IMAGES or len(sources) < LEAST_SOURCES:
            short.append(f"{len(everyone)} {sequence} images, and {len(sources)} of other sites")
            continue
        held, kept = max(1, len(images) // 5), max(1, len(sources) // 4)
        tasks.append(TargetTask(site, sequence, *_parted(images, held), *_parted(sources, kept)))
    needed = f"{LEAST_IMAGES} images of a sequence outside split test, and {LEAST_SOURCES} of other sites"
    if not tasks:
        raise DataError(f"site {site} with {'; '.join(short)}", needed, "Prepare more images.")
    for reason in short:
        log.warning("target %s has %s; no adapter is trained below %s", site, reason, needed)
    return tasks


def _check_preparation(store: PreparedStore, entries: Sequence[Row], config: Config) -> None:
    """DataError where a volume lies on another grid than the model's, or its bias field was treated in another way."""
    spacing, shape, bias = config.grid.spacing_mm, tuple(config.grid.shape), bias_step(config.prepare)
    for entry in entries:
        found = np.linalg.norm(entry["affine"][:3, :3], axis=0)
        own_bias = next((step for step in entry["steps"] or () if step.startswith("bias field:")), bias)
        if tuple(entry["shape"]) != shape or not np.allclose(found, spacing, rtol=1e-3) or own_bias != bias:
            edges = " x ".join(f"{edge:.3g}" for edge in found)
            received = f"{store.uri}: volumes of shape {tuple(entry['shape'])}, {edges} mm, {own_bias}"
            remedy = "Prepare with the model's grid and prepare settings."
            raise DataError(received, f"the model's grid {shape}, {spacing:g} mm, {bias}", remedy)


def _parted(rows: Sequence[Row], held: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows to train on, and about ``held`` of the last to validate on: whole subjects, or of a single subject images."""
    people = Counter(row["subject"] for row in rows)
    if len(people) == 1:
        return tuple(rows[:-held]), tuple(rows[-held:])
    chosen, room = set(), held
    for person, count in reversed(people.items()):
        if count <= room:
            chosen.add(person)
            room -= count
    chosen = chosen or {min(people, key=people.__getitem__)}
    kept, out = ([row for row in rows if (row["subject"] in chosen) == wanted] for wanted in (False, True))
    return tuple(kept), tuple(out)


def _drawn(images: Sequence[Row], count: int, seed: int) -> Sequence[Row]:
    """Images drawn by the seed, in their order; for a count of 0, or where there are no more, all."""
    if not 0 < count < len(images):
        return images
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return [images[index] for index in sorted(chosen)]


def _spread(entries: list[Row], count: int) -> list[Row]:
    """At most ``count`` rows, in turn from every site."""
    by_site: dict[str, list[Row]] = {}
    for entry in sorted(entries, key=lambda entry: entry["image_id"]):
        by_site.setdefault(entry["site"], []).append(entry)
    ranked = sorted((index, site) for site, own in by_site.items() for index in range(len(own)))
    return [by_site[site][index] for index, site in ranked[:count]]


def train_adapter(
    task: TargetTask,
    store_uri: str,
    bundle: Bundle,
    config: Config,
    aggregator: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> TaskOutcome:
    """Train one adapter; the work of one Ray task, but it needs no Ray.

    Parameters
    ----------
    aggregator:
        As in :func:`make_style_encoder`.
    on_step:
        Called after every step with its number, from 1, and losses.
    """
    store, model, target = PreparedStore(store_uri), bundle.model, config.target
    label, settings = bundle.sequence_index(task.sequence), config.harmonize
    spacing = bundle.config.grid.spacing_mm
    generator, noises = torch.Generator().manual_seed(target.seed), np.random.default_rng(target.seed)
    device = next(model.parameters()).device
    encoder = make_style_encoder(config.style, spacing, aggregator)

    def of_site(rows: Sequence[Row], styles: int) -> list[UnifiedVolume]:
        """Volumes of the site, each as it is and under random styles."""
        found = []
        for row in rows:
            scan, mask = store.read(row)

            def restyled(image: np.ndarray, mask: np.ndarray = mask) -> np.ndarray:
                tensors = torch.from_numpy(image), torch.from_numpy(mask)
                return restyle(*tensors, spacing, config.restyle, generator).numpy()

            for styled in [lambda image: image, *[restyled] * styles]:
                found.append(UnifiedVolume.of_target(model, scan, mask, label, settings, styled, noises))
        return found

    def of_sources(rows: Sequence[Row]) -> list[UnifiedVolume]:
        scans = (store.read(row) for row in rows)
        return [UnifiedVolume.of_source(model, scan, mask, label, settings) for scan, mask in scans]

    images, held = of_site(task.training, target.restyles), of_site(task.validation, 1)
    sources, held_sources = of_sources(task.sources), of_sources(task.validation_sources)
    plain = images[:: target.restyles + 1]
    style = SiteStyle.fit(*([getattr(volume, name) for volume in plain] for name in ("unified", "scan", "mask")))

    def draw_from(
        targets: list[UnifiedVolume], others: list[UnifiedVolume], key: int
    ) -> tuple[TargetBatch, TargetBatch]:
        rng = np.random.default_rng([target.seed, key])
        chosen = [targets[index] for index in rng.integers(len(targets), size=2)]
        seeds = rng.integers(2**31, size=3).tolist()
        site = batch_of([volume.group(label, target, model, seed) for volume, seed in zip(chosen, seeds, strict=False)])
        return site, batch_of([others[rng.integers(len(others))].group(label, target, model, seeds[2])])

    tuner = TargetFineTuner(model, style, encoder, target, settings).to(device)
    validation = [draw_from(held, held_sources, 10**9 + index) for index in range(VALIDATION_BATCHES)]
    tuned = tune(tuner, lambda step: draw_from(images, sources, step), validation, on_step)
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
        return train_adapter(task, store_uri, bundle, config, aggregator.state, on_step)
    finally:
        outbox.write()


def _run(
    tasks: list[TargetTask],
    store_uri: str,
    folder: Path,
    config: Config,
    aggregator: TrainedAggregator,
    outboxes: Mapping[str, tracking.MetricsOutbox],
) -> Iterator[tuple[TargetTask, TaskOutcome | Exception]]:
    """Tasks and their outcomes as they finish. One that fails takes the site's others with it, as a site is published whole; the other
    sites go on."""
    files = ray.put(bundle_files(folder))
    remote = ray.remote(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0, max_retries=2)(_task)
    pending = {}
    for task in tasks:
        pending[remote.remote(task, store_uri, files, config, aggregator, outboxes[task.site])] = task
    with progress(len(tasks), "Training targets", "adapters") as advance:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                for other in [ref for ref, found in pending.items() if found.site == task.site]:
                    ray.cancel(other)
                    del pending[other]
                log.error("target %s %s: %s", task.site, task.sequence, error)
                yield task, getattr(error, "cause", None) or error
                continue
            advance(1, f"{task.site} {task.sequence}: {outcome.tuned.steps} steps")
            yield task, outcome


def _publish(
    site: str,
    outcomes: Mapping[str, tuple[TargetTask, TaskOutcome]],
    base: Mapping[str, str],
    run: SiteRun,
    config: Config,
    aggregator: TrainedAggregator,
) -> TrainedTarget:
    """Bundle the adapters of a site, put the bundle into the storage and register it."""
    training: dict[str, Any] = {sequence: task.as_facts() for sequence, (task, _) in outcomes.items()}
    training["style_encoder"] = next(iter(outcomes.values()))[1].encoder
    training["aggregator"] = aggregator.figures
    styles = {sequence: outcome.style for sequence, (_, outcome) in outcomes.items()}
    tuned = {sequence: outcome.tuned for sequence, (_, outcome) in outcomes.items()}
    storage, root = open_storage(config.target.storage)
    name, target = tracking.target_model_name(site), place_of(root, site)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, name)
        save_target(local, site, base, styles, tuned, config, training, aggregator.state)
        put_target(storage, local, target)
        uri = tracking.register(run.run_id, local, name, config.tracking)
    run.finish()
    storage_uri = config.target.storage
    place = join_uri(storage_uri, target.removeprefix(f"{root}/")) if "://" in storage_uri else target
    return TrainedTarget(site, place, uri, run.run_id, {name: found.validation for name, found in tuned.items()})
