"""Sampling: with a denoiser that knows the answer, every plane, step and fusion returns it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import ModelError
from mmh_ray.imaging.intensity import MonotoneMap
from mmh_ray.imaging.slices import NORMAL, PLANES, take_slabs
from mmh_ray.models import sampling
from mmh_ray.models.denoiser import Context, to_diffusion
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sampling import (
    harmonize_volume,
    invert_and_sample,
    make_context,
    noise_slabs,
    sample,
    walk,
)

pytestmark = pytest.mark.fast


class Oracle(nn.Module):
    """Returns the slabs of a volume, found by plane and position; counts its calls."""

    def __init__(self, volume: np.ndarray, slab: int) -> None:
        super().__init__()
        self.volume, self.slab = volume, slab
        self.calls: list[tuple[int, int]] = []

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor, context: Context) -> Tensor:
        assert len(noisy) == len(timestep) == len(condition) == len(context.position)
        plane = PLANES[int(context.plane[0])]
        depth = self.volume.shape[NORMAL[plane]]
        indices = torch.round(context.position * (depth - 1)).long().tolist()
        self.calls.append((int(timestep[0]), len(noisy)))
        return to_diffusion(
            torch.from_numpy(take_slabs(self.volume, plane, indices, self.slab, tuple(noisy.shape[-2:])))
        )


@pytest.fixture
def oracle(model: GlobalHarmonizer, brain: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """The model's denoiser is replaced by one that knows the brain."""
    known = Oracle(brain, 3)
    monkeypatch.setattr(model, "denoiser", known)
    monkeypatch.setattr(model, "parameters", lambda: iter([torch.zeros(1)]))  # only asked for the device
    return known


def known(x0: Tensor, asked: list[int] | None = None) -> Any:
    """A denoiser that always returns ``x0`` and records the timesteps."""

    def denoise(_x: Tensor, t: int) -> Tensor:
        if asked is not None:
            asked.append(t)
        return x0

    return denoise


@pytest.mark.parametrize("fusion", ["mean", "median"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_known_answer_comes_back(
    model: GlobalHarmonizer, oracle: Oracle, brain: np.ndarray, mask: np.ndarray, fusion: Any, steps: int
) -> None:
    result = harmonize_volume(model, brain, mask, 0, HarmonizeConfig(steps=steps, fusion=fusion))
    np.testing.assert_allclose(result, brain, atol=1e-5)


def test_levels_are_those_of_the_domain(
    model: GlobalHarmonizer, oracle: Oracle, brain: np.ndarray, mask: np.ndarray
) -> None:
    levels = MonotoneMap(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.4, 1.2]))
    model.levels = {0: levels}
    result = harmonize_volume(model, brain, mask, 0, HarmonizeConfig())
    np.testing.assert_allclose(result, levels.apply_inside(brain, mask), atol=1e-5)
    other_sequence = harmonize_volume(model, brain, mask, 1, HarmonizeConfig())
    np.testing.assert_allclose(other_sequence, brain, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
def test_one_plane_is_enough(
    model: GlobalHarmonizer, oracle: Oracle, brain: np.ndarray, mask: np.ndarray, plane: str
) -> None:
    np.testing.assert_allclose(
        harmonize_volume(model, brain, mask, 0, HarmonizeConfig(planes=(plane,))), brain, atol=1e-5
    )


def test_batches_have_the_requested_size_and_do_not_change_the_result(
    model: GlobalHarmonizer, brain: np.ndarray, mask: np.ndarray
) -> None:
    model.eval()
    few, many = (harmonize_volume(model, brain, mask, 1, HarmonizeConfig(batch_slabs=size)) for size in (3, 64))
    np.testing.assert_allclose(few, many, atol=1e-4)


def test_no_pass_is_larger_than_the_batch(
    model: GlobalHarmonizer, oracle: Oracle, brain: np.ndarray, mask: np.ndarray
) -> None:
    harmonize_volume(model, brain, mask, 0, HarmonizeConfig(batch_slabs=4))
    sizes = [size for _, size in oracle.calls]
    assert max(sizes) <= 4
    assert sum(sizes) == sum(mask.any(axis=tuple({0, 1, 2} - {axis})).sum() for axis in range(3))


def test_one_step_from_noise_is_the_prediction_at_the_end(model: GlobalHarmonizer) -> None:
    noise, asked = torch.randn(2, 3, 8, 8), []

    def denoise(x: Tensor, t: int) -> Tensor:
        asked.append(t)
        return 0.3 * x + 0.1

    torch.testing.assert_close(sample(model, denoise, noise, 1), 0.3 * noise + 0.1)
    assert asked == [999]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 8, 50])
def test_steps_begin_in_pure_noise_and_end_at_the_known_image(model: GlobalHarmonizer, steps: int) -> None:
    x0, asked = torch.rand(2, 3, 8, 8), []
    found = sample(model, known(x0, asked), torch.randn_like(x0), steps)
    torch.testing.assert_close(found, x0, atol=1e-5, rtol=0)
    assert len(asked) == steps
    assert asked[0] == 999
    assert (np.diff(asked) < 0).all()


@pytest.mark.parametrize(("here", "there"), [(999, 500), (500, 100), (100, 500), (0, 300), (300, -1)])
def test_one_step_keeps_the_noise_and_moves_it_to_the_other_level(
    model: GlobalHarmonizer, here: int, there: int
) -> None:
    """Where the clean image is known, DDIM takes x_t = a x0 + s noise to the same x0 and noise at the other label."""
    x0, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alphas = torch.cat([model.scheduler.alphas_cumprod, torch.ones(1)])
    start, expected = (alphas[t] ** 0.5 * x0 + (1 - alphas[t]) ** 0.5 * noise for t in (here, there))
    found = walk(model, known(x0), start, np.array([here, there]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("slab", [1, 3, 5])
def test_a_voxel_has_the_same_noise_in_every_plane_and_slab(rng: np.random.Generator, plane: str, slab: int) -> None:
    shape, side, size = (5, 8, 6), 11, (7, 11)
    cube = rng.standard_normal((side + slab - 1,) * 3)
    voxels = cube[tuple(slice((side - n) // 2 + slab // 2, (side - n) // 2 + slab // 2 + n) for n in shape)]
    indices = np.arange(shape[NORMAL[plane]])
    found = noise_slabs(cube, plane, indices, slab, shape, size)
    assert found.shape == (len(indices), slab, *size)
    expected = take_slabs(voxels, plane, indices, slab, size)
    inside = take_slabs(np.ones(shape, bool), plane, indices, slab, size)
    np.testing.assert_array_equal(found[inside], expected[inside])
    assert found[~inside].all()  # noise all around, as in training


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(
    model: GlobalHarmonizer, oracle: Oracle, brain: np.ndarray, mask: np.ndarray, bad: float
) -> None:
    oracle.volume = oracle.volume.copy()
    oracle.volume[8, 12, 8] = bad
    with pytest.raises(ModelError, match="not finite from the denoiser"):
        harmonize_volume(model, brain, mask, 0, HarmonizeConfig())


def test_sampling_is_deterministic_and_leaves_the_model_alone(
    model: GlobalHarmonizer, brain: np.ndarray, mask: np.ndarray
) -> None:
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (harmonize_volume(model, brain, mask, 0, HarmonizeConfig(steps=2)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    other = harmonize_volume(model, brain, mask, 0, HarmonizeConfig(steps=2, seed=1))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fusion", ["mean", "median"])
def test_result_is_not_negative_and_zero_outside(
    model: GlobalHarmonizer, brain: np.ndarray, mask: np.ndarray, fusion: Any
) -> None:
    result = harmonize_volume(model.eval(), brain, mask, 1, HarmonizeConfig(fusion=fusion))
    assert result.shape == brain.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert not result[~mask].any()
    assert result[mask].max() > 0


def test_sequence_reaches_the_denoiser(model: GlobalHarmonizer, brain: np.ndarray, mask: np.ndarray) -> None:
    t1w, t2w = (harmonize_volume(model.eval(), brain, mask, sequence, HarmonizeConfig()) for sequence in (0, 1))
    assert not np.array_equal(t1w, t2w)


def test_unit_of_the_source_does_not_matter(model: GlobalHarmonizer, brain: np.ndarray, mask: np.ndarray) -> None:
    """When sampling starts from noise, only the condition carries the source."""
    plain, bright = (harmonize_volume(model.eval(), gain * brain, mask, 0, HarmonizeConfig()) for gain in (1, 5))
    np.testing.assert_allclose(bright, plain, atol=1e-4)


def test_context_of_a_chunk(model: GlobalHarmonizer) -> None:
    context = make_context(model, "coronal", np.array([0, 5, 10]), 11, 1, torch.device("cpu"))
    assert context.sequence.tolist() == [1, 1, 1]
    assert context.plane.tolist() == [1, 1, 1]
    assert context.position.tolist() == [0, 0.5, 1]
    torch.testing.assert_close(context.domain, model.domain_moments[[1, 1, 1]])


@pytest.mark.parametrize(("depth", "steps"), [(1, 1), (2, 2), (5, 3), (35, 25)])
def test_inversion_and_sampling_give_a_finite_image(
    model: GlobalHarmonizer, brain: np.ndarray, mask: np.ndarray, depth: int, steps: int
) -> None:
    settings = HarmonizeConfig(inversion_depth=depth, steps=steps, planes=("axial",))
    result = harmonize_volume(model.eval(), brain, mask, 0, settings)
    assert np.isfinite(result).all()
    assert result[mask].max() > 0


@pytest.mark.parametrize(("depth", "steps"), [(1, 1), (4, 4), (6, 1), (7, 3)])
def test_inversion_with_a_perfect_denoiser_gives_the_source_back(
    model: GlobalHarmonizer, depth: int, steps: int
) -> None:
    x0 = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(invert_and_sample(model, known(x0), x0, depth, steps), x0, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("depth", "steps"), [(1, 1), (6, 1), (6, 6), (35, 25)])
def test_sampling_starts_where_inversion_ended(
    model: GlobalHarmonizer, monkeypatch: pytest.MonkeyPatch, depth: int, steps: int
) -> None:
    walks: list[list[int]] = []

    def record(_model: Any, _denoise: Any, x: Tensor, labels: np.ndarray) -> Tensor:
        walks.append(labels.round().astype(int).tolist())
        return x

    monkeypatch.setattr(sampling, "walk", record)
    invert_and_sample(model, known(torch.zeros(1)), torch.rand(1, 3, 4, 4), depth, steps)
    up, down = walks
    assert (len(up), len(down)) == (depth + 1, steps + 1)
    assert up[0] == 0
    assert up[-1] == down[0] == 950
    assert down[-1] == -1


def test_inversion_keeps_what_noise_forgets(model: GlobalHarmonizer) -> None:
    """With a denoiser that only shrinks its input, two sources still differ after inversion."""
    first, second = torch.rand(2, 1, 3, 8, 8)

    def shrink(x: Tensor, _t: int) -> Tensor:
        return 0.5 * x

    found = [invert_and_sample(model, shrink, source, 6, 6) for source in (first, second)]
    assert float((found[0] - found[1]).abs().mean()) > 1e-3


def test_gradients_flow_through_the_last_steps_only(model: GlobalHarmonizer) -> None:
    gain = torch.ones((), requires_grad=True)
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def found(last: int | None) -> tuple[float, float]:
        image = sample(model, lambda x, t: 0.5 * gain * x, noise, 4, last)
        (gradient,) = torch.autograd.grad(image.sum(), gain)
        return float(image.detach().sum()), float(gradient)

    (whole, all_steps), (same, every), (again, one) = found(None), found(4), found(1)
    assert whole == same == again
    assert all_steps == every
    assert one == pytest.approx(whole, rel=1e-5)  # the last step alone is linear in the gain
    assert abs(one - all_steps) > 1e-3 * abs(all_steps)
