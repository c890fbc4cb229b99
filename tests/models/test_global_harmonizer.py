"""Stage 1 without Ray: gradients everywhere, determinism by keys, domains that drift only in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmh_ray.config import ModelConfig, TrainConfig
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.losses import group_statistics

pytestmark = pytest.mark.fast


def part(batch: SlabBatch, rows: list[int]) -> SlabBatch:
    """Some slabs of a batch, in this order, as one group."""
    chosen = {name: value[rows] for name, value in vars(batch).items()}
    return SlabBatch(**{**chosen, "group": torch.zeros(len(rows), dtype=torch.long)})


def test_every_parameter_gets_a_gradient(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    model(batch)["loss"].backward()
    silent = [
        name for name, value in model.named_parameters() if value.grad is None or not torch.isfinite(value.grad).all()
    ]
    assert not silent
    assert sum(float(value.grad.abs().sum()) for value in model.parameters()) > 0
    used = model.denoiser.sequence.weight.grad.abs().sum(1)
    assert (used > 0).all()


def test_loss_is_the_weighted_sum_of_its_parts(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    weights = model.eval().train_config
    for ramp in (0.0, 0.5, 1.0):
        losses = model(batch, style_ramp=ramp)
        expected = losses["mse"] + weights.gradient_weight * losses["gradient"]
        expected = expected + ramp * weights.style_weight * losses["style"]
        torch.testing.assert_close(losses["loss"], expected)
        assert all(float(value.detach()) > 0 for name, value in losses.items() if name != "consistency")
        assert float(losses["consistency"].detach()) == 0  # the groups are no twins


def test_twins_are_to_agree(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    twins = replace(batch, twin=torch.zeros_like(batch.twin))
    with torch.no_grad():
        losses, plain = model.eval()(twins), model(batch)
    assert float(losses["consistency"]) > 0
    weight = model.train_config.consistency_weight
    torch.testing.assert_close(losses["loss"], plain["loss"] + weight * losses["consistency"])


def test_same_keys_same_loss_other_keys_another(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    model.eval()
    with torch.no_grad():
        first = model(batch)["loss"]
        torch.rand(7)  # the global random state has no say
        assert torch.equal(model(batch)["loss"], first)
        batch.key = batch.key + 1
        assert not torch.equal(model(batch)["loss"], first)


def test_a_slab_draws_the_same_in_any_batch(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    noise, timestep = model.draw(batch)
    rows = [4, 1]
    other_noise, other_timestep = model.draw(part(batch, rows))
    assert torch.equal(other_noise, noise[rows])
    assert torch.equal(other_timestep, timestep[rows])
    assert len({float(one.sum()) for one in noise}) == len(noise)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_share_of_slabs_is_trained_at_pure_noise(tiny: ModelConfig, share: float) -> None:
    model = GlobalHarmonizer(tiny, TrainConfig(terminal_share=share), torch.linspace(0, 1, 257).repeat(2, 2, 1))
    many = SlabBatch(**{name: torch.zeros(600, 1, 1, 1) for name in SlabBatch.__dataclass_fields__})
    many.key = torch.arange(600)
    noise, timestep = model.draw(many)
    assert float((timestep == 999).float().mean()) == pytest.approx(share, abs=0.06)
    assert 0 <= int(timestep.min()) <= int(timestep.max()) == 999
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    if share < 1:
        assert float(timestep[timestep < 999].float().mean()) == pytest.approx(499, abs=60)


def test_at_the_last_timestep_the_target_cannot_leak(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    noise, last = model.draw(batch)[0], torch.full((6,), 999)
    with torch.no_grad():
        seen = model.predict(batch, noise, last)
        batch.image = torch.rand_like(batch.image)
        assert torch.equal(model.predict(batch, noise, last), seen)


def test_domains_start_from_the_cohort(tiny: ModelConfig) -> None:
    plain = torch.stack([torch.linspace(0, 1, 257), torch.linspace(0.4, 0.6, 257)])
    quantiles = torch.stack([plain, 0.9 * plain], dim=1)  # the tissue quantiles have no part in the start
    model = GlobalHarmonizer(tiny, TrainConfig(), quantiles)
    moments = model.domain_moments
    assert torch.equal(model.domain_quantiles, quantiles)
    assert "domain_quantiles" in model.state_dict()  # travels with the weights: the condition is matched to it
    torch.testing.assert_close(moments, torch.tensor([[0.5, 12**-0.5], [0.5, 0.2 * 12**-0.5]]), atol=0.003, rtol=0)


def test_domains_drift_in_training_only(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    before = [model.domain_cumulative.clone(), model.domain_moments.clone()]
    model.eval()(batch)
    assert torch.equal(model.domain_cumulative, before[0])
    assert torch.equal(model.domain_moments, before[1])
    model.train()(batch)
    assert not torch.equal(model.domain_cumulative, before[0])
    assert not torch.equal(model.domain_moments, before[1])
    assert torch.equal(model.domain_quantiles, torch.linspace(0, 1, 257).repeat(2, 2, 1))  # the condition's stays


def test_domain_moves_by_the_decay_towards_the_group_and_only_its_own(
    model: GlobalHarmonizer, batch: SlabBatch
) -> None:
    group = part(batch, [0, 1, 2])
    before, predicted = model.domain_moments.clone(), 2 * group.image - 1
    model.style_loss(predicted, group)
    _, moments = group_statistics(group.image[:, 1], group.mask[:, 1], group.group)
    torch.testing.assert_close(model.domain_moments[0], 0.95 * before[0] + 0.05 * moments[0])
    assert torch.equal(model.domain_moments[1], before[1])  # no T2w group in the batch


def test_statistics_travel_with_the_weights(model: GlobalHarmonizer, batch: SlabBatch, tiny: ModelConfig) -> None:
    model(batch)
    other = GlobalHarmonizer(tiny, TrainConfig(), torch.zeros(2, 2, 257))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(batch)["loss"], model.eval()(batch)["loss"])


def test_it_has_a_pulse(model: GlobalHarmonizer, batch: SlabBatch) -> None:
    """A few steps on one batch lower its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
