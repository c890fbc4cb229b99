"""Trains the global model on Ray Train: data-parallel workers with checkpoints, MLflow, and a bundle at the end."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
import safetensors.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from mmh_ray import tracking
from mmh_ray.config import Config, from_dict, to_dict
from mmh_ray.distributed.cluster import TrainingPlacement, connect
from mmh_ray.distributed.datasets import training_stream, validation_batches
from mmh_ray.distributed.domains import ChosenDomain, UnifiedDomain, simulation_hash, usable
from mmh_ray.distributed.job_facts import note_in_job, ray_facts
from mmh_ray.distributed.levels import curves_of_levels
from mmh_ray.distributed.recovery import fit_to_the_end
from mmh_ray.distributed.run_storage import cited_place, open_storage, start_or_continue
from mmh_ray.errors import ConfigError
from mmh_ray.imaging.slices import middle_slice
from mmh_ray.models.bundle import load_bundle, save_bundle
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.sampling import harmonize_volume
from mmh_ray.models.trainer import Trainer, best_weights
from mmh_ray.progress import progress
from mmh_ray.shards import PreparedStore

log = logging.getLogger(__name__)

STATE = "state.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """Where the trained model is stored."""

    bundle: str
    """Bundle folder or URI."""
    model_uri: str
    """``models:/NAME/VERSION`` in the registry."""
    run_id: str
    """Id of the MLflow run."""
    validation: dict[str, float]
    """Validation losses of the best weights."""


@dataclass(frozen=True)
class _Run:
    """Inputs and storage of a training run."""

    config: Config
    store: PreparedStore | None
    domain: UnifiedDomain
    storage: pyarrow.fs.FileSystem
    folder: str
    run_id: str
    data_hash: str

    @property
    def store_uri(self) -> str | None:
        """Place of the prepared volumes; None if the training uses none."""
        return None if self.store is None else self.store.uri

    @property
    def outbox(self) -> tracking.MetricsOutbox:
        """Where metrics wait for MLflow."""
        return tracking.MetricsOutbox(self.storage, f"{self.folder}/{self.config.train.run_name}/metrics")


def train_global(prepared: str | None, config: Config) -> TrainedModel:
    """Train the global harmonizer and register it, on prepared volumes or, without any, on simulated people alone.

    A run with the same ``train.run_name`` and ``train.storage`` continues from its last checkpoint. If a node is lost,
    training goes on with the rest of the cluster.

    Raises
    ------
    ConfigError
        If a run of that name has other settings or data, or the workers find no room in the cluster: immediately at the
        start, later after ``train.wait_s``.
    DataError
        If the store cannot be read or lacks a sequence of the model.
    """
    connect()
    store: PreparedStore | None = None
    if prepared is None:
        chosen = ChosenDomain.of_simulation(config)
        domain: UnifiedDomain = chosen
        facts = {"data_hash": simulation_hash(chosen), "prepared": "simulation alone"}
    else:
        store = PreparedStore(str(Path(prepared).absolute()) if "://" not in prepared else prepared)
        domain = UnifiedDomain.of(store, config)
        facts = {"data_hash": store.data_hash, "prepared": store.uri}
    storage, folder = open_storage(config.train.storage)
    tracking.configure(config.tracking)
    run_id = start_or_continue(storage, f"{folder}/{config.train.run_name}", config, facts | ray_facts())
    note_in_job({"mlflow_run_id": run_id})
    run = _Run(
        config=config,
        store=store,
        domain=domain,
        storage=storage,
        folder=folder,
        run_id=run_id,
        data_hash=facts["data_hash"],
    )
    tracking.log_input(run_id, tracking.RunInput("training", run.data_hash, run.store_uri))
    try:
        with _shown(config.train.steps) as show, tracking.sending_metrics(run.outbox, run_id, show):
            trained = _publish(run, _fit(run))
    except BaseException:
        tracking.mark_failed(run_id)
        raise
    tracking.finish(run_id)
    return trained


def _fit(run: _Run) -> dict[str, torch.Tensor]:
    """Train until the last step; returns the final trainer state."""
    first = first_weights(run.config)
    result = fit_to_the_end(
        run.config.train,
        trainer_on=lambda placement: _trainer(run, placement, first),
        checkpoints=lambda: _checkpoints(run),
    )
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as directory:
        return safetensors.torch.load_file(Path(directory, STATE))


def _trainer(run: _Run, placement: TrainingPlacement, first: dict[str, torch.Tensor] | None) -> TorchTrainer:
    """The trainer of one attempt, which fails if a worker dies or cannot be placed."""
    config = run.config
    no_retries = FailureConfig(0, controller_failure_limit=0, max_preemption_failures=0)  # type: ignore[call-arg]
    return TorchTrainer(
        _work,
        train_loop_config={
            "store": run.store_uri,
            "config": to_dict(config),
            "domain": run.domain,
            "loaders": placement.loaders,
            "outbox": run.outbox,
            "first": first,
        },
        scaling_config=ScalingConfig(
            num_workers=placement.workers, use_gpu=config.train.use_gpu, resources_per_worker=placement.resources
        ),
        run_config=RunConfig(
            name=config.train.run_name,
            storage_path=run.folder,
            storage_filesystem=run.storage,
            failure_config=no_retries,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def _checkpoints(run: _Run) -> set[str]:
    """Names of the checkpoints of a run."""
    folder = f"{run.folder}/{run.config.train.run_name}"
    infos = run.storage.get_file_info(pyarrow.fs.FileSelector(folder))
    return {info.base_name for info in infos if info.base_name.startswith("checkpoint_")}


def first_weights(config: Config) -> dict[str, torch.Tensor] | None:
    """Denoiser weights of the model in ``train.start_from``, on the CPU; None if training starts from scratch.

    Raises
    ------
    ConfigError
        If the settings of that model differ from the configured ones.
    """
    name = config.train.start_from
    if name is None:
        return None
    folder, _ = tracking.resolve_model(name, config.tracking)
    bundle = load_bundle(folder)
    model_settings = to_dict(bundle.config.model)
    differences = []
    for key, value in to_dict(config.model).items():
        if value != model_settings[key]:
            differences.append(f"model.{key}={value} instead of {model_settings[key]}")
    if differences:
        received = f"train.start_from={name} with {', '.join(differences)}"
        raise ConfigError(received, "the settings of that model", "Use its settings, or train without start_from.")
    return {key: value.cpu() for key, value in bundle.model.denoiser.state_dict().items()}


def _work(spec: dict[str, Any]) -> None:
    """The training loop of each worker."""
    config: Config = from_dict(Config, spec["config"])
    context = ray.train.get_context()
    store_uri: str | None = spec["store"]
    domain: UnifiedDomain = spec["domain"]
    loaders: int = spec["loaders"]
    rank = context.get_world_rank()
    world = context.get_world_size()
    cores = (os.cpu_count() or 1) // context.get_local_world_size()
    torch.set_num_threads(max(1, cores - loaders))  # threads that share cores with a loader wait for each other
    torch.manual_seed(config.train.seed)
    model = GlobalHarmonizer(config.model, config.train, domain.as_tensor(config.model.sequences))
    if spec["first"] is not None:
        model.denoiser.load_state_dict(spec["first"])
    model.to(get_device())
    trainer = Trainer(model, config.train, prepare_model(model))
    _resume(trainer)
    validation = validation_batches(store_uri, config, domain) if rank == 0 else []
    system = _system_metrics(context)
    stream = training_stream(
        store_uri=store_uri,
        config=config,
        domain=domain,
        first_step=trainer.steps_done,
        rank=rank,
        world=world,
        loaders=loaders,
    )
    ended = time.perf_counter()
    for batch in stream:
        started = time.perf_counter()
        metrics = trainer.step(batch)
        waited = started - ended
        seconds = time.perf_counter() - ended
        metrics["slabs_per_second"] = world * len(batch.plane) / seconds
        metrics["data_wait_share"] = waited / seconds
        system_values = system.due() if system is not None else {}
        _after_step(
            trainer=trainer,
            config=config,
            rank=rank,
            metrics=metrics,
            validation=validation,
            outbox=spec["outbox"],
            system_values=system_values,
        )
        ended = time.perf_counter()


def _system_metrics(context: ray.train.TrainContext) -> tracking.SystemMetrics | None:
    """System metrics of this node, if this is its first worker; with several nodes, named after the node."""
    if context.get_local_rank() != 0:
        return None
    is_alone = context.get_local_world_size() == context.get_world_size()
    return tracking.SystemMetrics(None if is_alone else f"node-{context.get_node_rank()}")


def _after_step(
    trainer: Trainer,
    config: Config,
    rank: int,
    metrics: dict[str, float],
    validation: list[SlabBatch],
    outbox: tracking.MetricsOutbox,
    system_values: dict[str, float],
) -> None:
    """Validate and save a checkpoint when due, and pass metrics on: those of training from the first worker only."""
    step = trainer.steps_done
    is_last = step == config.train.steps
    is_first_worker = rank == 0
    values = dict(system_values)
    if is_first_worker:
        if is_last or step % config.train.validate_every == 0:
            metrics |= trainer.validate(validation)
        values |= metrics
    if values:
        outbox.add(step, values)
    if not (is_last or step % config.train.checkpoint_every == 0):
        return
    outbox.write()
    # A thread uploads the folder and then deletes it, so that no step waits for a slow store or for Ray Train.
    upload = CheckpointUploadMode.ASYNC
    if not is_first_worker:
        ray.train.report({"step": step}, checkpoint_upload_mode=upload)
        return
    folder = tempfile.mkdtemp(prefix="mmh-checkpoint-")
    safetensors.torch.save_file(trainer.state(), Path(folder, STATE))
    checkpoint = Checkpoint.from_directory(folder)
    ray.train.report({"step": step, **metrics}, checkpoint=checkpoint, checkpoint_upload_mode=upload)


def _resume(trainer: Trainer) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            trainer.load_state(safetensors.torch.load_file(Path(directory, STATE)))


@contextmanager
def _shown(steps: int) -> Iterator[Callable[[tracking.MetricRow], None]]:
    """Show a progress bar that is updated by rows of metrics."""
    with progress(steps, "Training", "steps") as advance:
        shown = 0

        def show(row: tracking.MetricRow) -> None:
            nonlocal shown
            if "loss" not in row.values:  # system metrics of another node
                return
            note = f"loss {row.values['loss']:.4f}, data wait {row.values['data_wait_share']:.0%}"
            advance(max(0, row.step - shown), note)  # steps that were lost with a worker are done twice
            shown = max(shown, row.step)

        yield show


def _publish(run: _Run, state: dict[str, torch.Tensor]) -> TrainedModel:
    """Bundle the best weights, store the bundle next to the checkpoints and register it."""
    config = run.config
    store = run.store
    quantiles = run.domain.as_tensor(config.model.sequences)
    model = GlobalHarmonizer(config.model, config.train, quantiles)
    model.load_state_dict(best_weights(state))
    batches = validation_batches(run.store_uri, config, run.domain)
    validation = Trainer(model, config.train).validate(batches)
    if isinstance(run.domain, ChosenDomain):
        model.levels = curves_of_levels(model.eval(), run.domain, config)
    counts = {} if store is None else _counts_by_site(store)
    training = {"steps": int(state["steps_done"]), "validation": validation, "counts": counts}
    place = f"{run.folder}/{config.train.run_name}/bundle"
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, "bundle")
        save_bundle(local, model, config, quantiles=quantiles, data_hash=run.data_hash, training=training)
        run.storage.create_dir(place)
        pyarrow.fs.copy_files(str(local), place, destination_filesystem=run.storage)
        model_uri = tracking.register(run.run_id, local, config.tracking.model_name, config.tracking)
        if store is not None:
            for picture in _sample_figures(model.eval(), store, config, Path(scratch)):
                tracking.log_file(run.run_id, picture, "figures")
    cited = cited_place(config.train.storage, run.folder, place)
    return TrainedModel(cited, model_uri, run.run_id, validation)


def _counts_by_site(store: PreparedStore) -> dict[str, Counter[str]]:
    """Number of training volumes by site and sequence."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in usable(store, "train"):
        counts[entry["site"]][entry["sequence"]] += 1
    return dict(counts)


def _sample_figures(model: GlobalHarmonizer, store: PreparedStore, config: Config, folder: Path) -> Iterator[Path]:
    """Draw a picture per sequence: a volume of each site (at most 6, none of split test), prepared and harmonized."""
    from mmh_ray.evaluation.report.figures import before_after  # matplotlib, which no training worker needs

    for label, sequence in enumerate(config.model.sequences):
        by_site = {}
        for entry in usable(store, "train") + usable(store, "val"):
            if entry["sequence"] == sequence:
                by_site[entry["site"]] = entry  # the last one, which is of split val if the site has one there
        rows: dict[str, list] = {"prepared": [], "harmonized": []}
        for entry in list(by_site.values())[:6]:
            image, mask = store.read(entry)
            harmonized = harmonize_volume(model, image, mask, label, config.harmonize)
            for name, volume in (("prepared", image), ("harmonized", harmonized)):
                rows[name].append(middle_slice(volume, mask, entry["affine"]))
        path = folder / f"{sequence}_samples.png"
        before_after(path, rows, list(by_site)[:6], f"{sequence}: one volume of each site")
        yield path
