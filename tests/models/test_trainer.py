"""The learner: learns, keeps its best, and goes on after a restart as if nothing had happened."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mmh_ray.config import ModelConfig, TrainConfig
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.trainer import Learner, best_weights, schedule

pytestmark = pytest.mark.fast

CONFIG = TrainConfig(steps=40, warmup_steps=2, learning_rate=3e-3, ema_decay=0.9)


def learner_of(tiny: ModelConfig, seed: int = 0, config: TrainConfig = CONFIG) -> Learner:
    """A fresh learner with its own initial weights."""
    torch.manual_seed(seed)
    return Learner(GlobalHarmonizer(tiny, config, torch.linspace(0, 1, 257).repeat(2, 2, 1)), config)


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    assert not [name for name, value in first.items() if not torch.equal(value, second[name])]


def test_steps_on_one_batch_lower_its_loss(tiny: ModelConfig, batch: SlabBatch) -> None:
    learner = learner_of(tiny)
    rows = [learner.step(batch) for _ in range(12)]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert learner.steps_done == 12
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["learning_rate"] for row in rows] == [3e-3 * schedule(step, CONFIG) for step in range(12)]


def test_both_optimizers_follow_the_schedule(tiny: ModelConfig, batch: SlabBatch) -> None:
    learner = learner_of(tiny)
    for step in range(4):
        learner.step(batch)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers]
        assert rates == [rate * schedule(step, CONFIG) for rate in (CONFIG.matrix_learning_rate, CONFIG.learning_rate)]


def test_restart_from_a_file_equals_no_interruption(tiny: ModelConfig, batch: SlabBatch, tmp_path: Path) -> None:
    def three(learner: Learner, start: int) -> None:
        for number in range(start, start + 3):
            learner.step(replace(batch, key=batch.key + number))

    uninterrupted, stopped, resumed = learner_of(tiny), learner_of(tiny), learner_of(tiny, seed=9)
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
    fresh, other = learner_of(tiny), learner_of(tiny, seed=1)
    safetensors.torch.save_file(fresh.state(), tmp_path / "state.safetensors")
    other.load_state(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert_same_state(other.state(), fresh.state())
    assert other.best_loss == math.inf


def test_state_is_a_copy(tiny: ModelConfig, batch: SlabBatch) -> None:
    learner = learner_of(tiny)
    learner.step(batch)
    state = learner.state()
    kept = {name: value.clone() for name, value in state.items()}
    learner.step(batch)
    assert_same_state(state, kept)


def test_validation_is_deterministic_and_leaves_randomness_and_training_alone(
    tiny: ModelConfig, batch: SlabBatch
) -> None:
    learner = learner_of(tiny)
    learner.step(batch)
    learner.validate([batch])
    before, random = learner.state(), torch.get_rng_state()
    first, again = (learner.validate([batch, replace(batch, key=batch.key + 7)]) for _ in range(2))
    assert first == again
    assert set(first) == {"val_loss", "val_mse", "val_gradient", "val_style", "val_consistency"}
    assert torch.equal(torch.get_rng_state(), random)
    after = learner.state()
    parts = [name for name in before if name.split("/")[0] in ("model", "average", "optimizer", "steps_done")]
    assert_same_state({name: before[name] for name in parts}, {name: after[name] for name in parts})


def test_validation_is_the_mean_over_batches(tiny: ModelConfig, batch: SlabBatch) -> None:
    learner, other = learner_of(tiny), replace(batch, key=batch.key + 7)
    one, two, both = (learner.validate(batches)["val_loss"] for batches in ([batch], [other], [batch, other]))
    assert both == pytest.approx((one + two) / 2)


def test_best_weights_are_those_of_the_lowest_validation(tiny: ModelConfig, batch: SlabBatch) -> None:
    learner = learner_of(tiny)
    for _ in range(6):
        learner.step(batch)
    best = learner.validate([batch])["val_loss"]
    kept = {name: value.clone() for name, value in learner.average.state_dict().items()}
    with torch.no_grad():
        for value in learner.average.parameters():
            value.add_(0.3)
    assert learner.validate([batch])["val_loss"] > best
    assert learner.best_loss == best
    assert_same_state(best_weights(learner.state()), kept)
    assert_same_state(learner.best.state_dict(), kept)


def test_average_follows_the_weights_slowly(tiny: ModelConfig, batch: SlabBatch) -> None:
    learner = learner_of(tiny)
    name = "denoiser.sequence.weight"
    start = learner.model.state_dict()[name].clone()
    learner.step(batch)
    now, average = (part.state_dict()[name] for part in (learner.model, learner.average))
    decay = 2 / 11  # (1 + steps) / (10 + steps) after the first step: the first average forgets the initial weights
    torch.testing.assert_close(average, decay * start + (1 - decay) * now)
    assert not learner.average.training
    assert not any(value.requires_grad for value in learner.average.parameters())


def test_schedule_has_its_known_values() -> None:
    config = TrainConfig(steps=1000, warmup_steps=10)
    assert schedule(0, config) == pytest.approx(0.1)
    assert schedule(9, config) == pytest.approx(1, rel=1e-3)  # the peak; the cosine has hardly begun
    assert schedule(500, config) == pytest.approx(0.01 + 0.99 / 2)
    assert schedule(999, config) == pytest.approx(0.01, rel=1e-3)
    assert schedule(5000, config) == pytest.approx(0.01)
    shares = [schedule(step, config) for step in range(9, 1000)]
    assert all(before > after for before, after in pairwise(shares))
    assert schedule(0, replace(config, warmup_steps=0)) == pytest.approx(1)


def test_every_weight_is_trained_by_one_optimizer(tiny: ModelConfig) -> None:
    learner = learner_of(tiny)
    hidden, rest = ([id(p) for p in optimizer.param_groups[0]["params"]] for optimizer in learner.optimizers)
    assert sorted(hidden + rest) == sorted(map(id, learner.model.parameters()))
    unet = learner.model.denoiser.unet
    assert id(unet.mid_block.resnets[0].conv1.weight) in hidden
    assert {id(unet.conv_in.weight), id(unet.conv_out.weight), id(unet.conv_norm_out.weight)} <= set(rest)


def test_style_comes_in_over_the_first_fifth(
    tiny: ModelConfig, batch: SlabBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, ramps = learner_of(tiny), []
    forward = learner.model.forward

    def record(given: SlabBatch, ramp: float) -> dict[str, Tensor]:
        ramps.append(ramp)
        return forward(given, ramp)

    monkeypatch.setattr(learner.model, "forward", record)
    for learner.steps_done in (0, 2, 8, 30):
        learner.step(batch)
    assert ramps == [0, 0.25, 1, 1]
