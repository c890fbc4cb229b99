"""The trainer: learns, keeps its best weights, and continues after a restart as if nothing had happened."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mmh_ray.config import ModelConfig, TrainConfig
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.trainer import Trainer, best_weights
from mmh_ray.training import learning_rate_share

pytestmark = pytest.mark.fast

CONFIG = TrainConfig(steps=40, warmup_steps=2, learning_rate=3e-3, ema_decay=0.9)


def share(step: int) -> float:
    """Share of the peak learning rates at a step."""
    return learning_rate_share(step, CONFIG.steps, CONFIG.warmup_steps)


def trainer_of(tiny: ModelConfig, seed: int = 0, config: TrainConfig = CONFIG) -> Trainer:
    """A fresh trainer with its own initial weights."""
    torch.manual_seed(seed)
    return Trainer(GlobalHarmonizer(tiny, config, torch.linspace(0, 1, 257).repeat(2, 2, 1)), config)


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    assert not [name for name, value in first.items() if not torch.equal(value, second[name])]


def test_steps_on_one_batch_lower_its_loss(tiny: ModelConfig, batch: SlabBatch) -> None:
    trainer = trainer_of(tiny)
    rows = [trainer.step(batch) for _ in range(12)]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert trainer.steps_done == 12
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["learning_rate"] for row in rows] == [3e-3 * share(step) for step in range(12)]


def test_both_optimizers_follow_the_schedule(tiny: ModelConfig, batch: SlabBatch) -> None:
    trainer = trainer_of(tiny)
    for step in range(4):
        trainer.step(batch)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
        assert rates == [share(step) * CONFIG.matrix_learning_rate, share(step) * CONFIG.learning_rate]


def test_restart_from_a_file_equals_no_interruption(tiny: ModelConfig, batch: SlabBatch, tmp_path: Path) -> None:
    def three(trainer: Trainer, start: int) -> None:
        for number in range(start, start + 3):
            trainer.step(replace(batch, key=batch.key + number))

    uninterrupted, stopped, resumed = trainer_of(tiny), trainer_of(tiny), trainer_of(tiny, seed=9)
    three(uninterrupted, 0)
    uninterrupted.validate([batch])
    three(uninterrupted, 3)

    three(stopped, 0)
    stopped.validate([batch])
    safetensors.torch.save_file(stopped.state(), tmp_path / "state.safetensors")
    three(stopped, 3)  # what the dead process did after its checkpoint is lost
    resumed.load_state(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    three(resumed, 3)
    assert_same_state(resumed.state(), uninterrupted.state())


def test_state_before_the_first_step_and_validation_can_be_loaded(tiny: ModelConfig, tmp_path: Path) -> None:
    fresh, other = trainer_of(tiny), trainer_of(tiny, seed=1)
    safetensors.torch.save_file(fresh.state(), tmp_path / "state.safetensors")
    other.load_state(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert_same_state(other.state(), fresh.state())
    assert other.best_loss == math.inf


def test_state_is_a_copy(tiny: ModelConfig, batch: SlabBatch) -> None:
    trainer = trainer_of(tiny)
    trainer.step(batch)
    state = trainer.state()
    kept = {name: value.clone() for name, value in state.items()}
    trainer.step(batch)
    assert_same_state(state, kept)


def test_validation_is_deterministic_and_leaves_randomness_and_training_alone(
    tiny: ModelConfig, batch: SlabBatch
) -> None:
    trainer = trainer_of(tiny)
    trainer.step(batch)
    trainer.validate([batch])
    before, random = trainer.state(), torch.get_rng_state()
    first, again = (trainer.validate([batch, replace(batch, key=batch.key + 7)]) for _ in range(2))
    assert first == again
    assert set(first) == {"val_loss", "val_mse", "val_gradient", "val_style", "val_consistency"}
    assert torch.equal(torch.get_rng_state(), random)
    after = trainer.state()
    parts = [name for name in before if name.split("/")[0] in ("model", "average", "optimizer", "steps_done")]
    assert_same_state({name: before[name] for name in parts}, {name: after[name] for name in parts})


def test_validation_is_the_mean_over_batches(tiny: ModelConfig, batch: SlabBatch) -> None:
    trainer, other = trainer_of(tiny), replace(batch, key=batch.key + 7)
    one, two, both = (trainer.validate(batches)["val_loss"] for batches in ([batch], [other], [batch, other]))
    assert both == pytest.approx((one + two) / 2)


def test_best_weights_are_those_of_the_lowest_validation(tiny: ModelConfig, batch: SlabBatch) -> None:
    trainer = trainer_of(tiny)
    for _ in range(6):
        trainer.step(batch)
    best = trainer.validate([batch])["val_loss"]
    kept = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    with torch.no_grad():
        for value in trainer.average.parameters():
            value.add_(0.3)
    assert trainer.validate([batch])["val_loss"] > best
    assert trainer.best_loss == best
    assert_same_state(best_weights(trainer.state()), kept)
    assert_same_state(trainer.best.state_dict(), kept)


def test_average_follows_the_weights_slowly(tiny: ModelConfig, batch: SlabBatch) -> None:
    trainer = trainer_of(tiny)
    name = "denoiser.sequence.weight"
    start = trainer.model.state_dict()[name].clone()
    trainer.step(batch)
    now, average = (part.state_dict()[name] for part in (trainer.model, trainer.average))
    decay = 2 / 11  # (1 + steps) / (10 + steps) after the first step: the first average forgets the initial weights
    torch.testing.assert_close(average, decay * start + (1 - decay) * now)
    assert not trainer.average.training
    assert not any(value.requires_grad for value in trainer.average.parameters())


def test_every_weight_is_trained_by_one_optimizer(tiny: ModelConfig) -> None:
    trainer = trainer_of(tiny)
    hidden, rest = ([id(p) for p in optimizer.param_groups[0]["params"]] for optimizer in trainer.optimizers)
    assert sorted(hidden + rest) == sorted(map(id, trainer.model.parameters()))
    unet = trainer.model.denoiser.unet
    assert id(unet.mid_block.resnets[0].conv1.weight) in hidden
    assert {id(unet.conv_in.weight), id(unet.conv_out.weight), id(unet.conv_norm_out.weight)} <= set(rest)


def test_style_comes_in_over_the_first_fifth(
    tiny: ModelConfig, batch: SlabBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, ramps = trainer_of(tiny), []
    forward = trainer.model.forward

    def record(given: SlabBatch, ramp: float) -> dict[str, Tensor]:
        ramps.append(ramp)
        return forward(given, ramp)

    monkeypatch.setattr(trainer.model, "forward", record)
    for trainer.steps_done in (0, 2, 8, 30):
        trainer.step(batch)
    assert ramps == [0, 0.25, 1, 1]
