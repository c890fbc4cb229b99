"""Spikes, a second head, wide fluid, integers that ran over, a mask beside its brain: what each figure says of a known case."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.config import QualityConfig
from mmh_ray.errors import RefusedError
from mmh_ray.evaluation.oddities import mask_offset, second_head, spikes, widest_fluid, wrapped
from mmh_ray.evaluation.quality import check_scan
from mmh_ray.imaging.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.imaging.phantom import SITES, render
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.volume import Volume

pytestmark = pytest.mark.fast

SPACING = 3.0


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return simulate_anatomy(Person(5, scalp=True), SPACING)


@pytest.fixture(scope="module")
def scans(anatomy: Anatomy) -> dict[str, np.ndarray]:
    """T1w and T2w of one person, unit intensity."""
    rng = np.random.default_rng(1)
    images = {sequence: render(anatomy, SITES[0], sequence, rng, SPACING) for sequence in ("T1w", "T2w")}
    return {
        name: (image / np.percentile(image[anatomy.brain], 99.5)).astype(np.float32) for name, image in images.items()
    }


@pytest.mark.parametrize("height", [3.0, -1.5])
def test_spikes_are_counted_and_tissue_is_not(anatomy: Anatomy, scans: dict[str, np.ndarray], height: float) -> None:
    for scan in scans.values():
        assert spikes(scan, anatomy.brain) == 0
    deep = np.argwhere(ndimage.binary_erosion(anatomy.brain, iterations=3))[::200][:60]
    spoilt = scans["T1w"].copy()
    spoilt[tuple(deep.T)] += height
    assert spikes(spoilt, anatomy.brain) >= 0.9 * len(deep) > QualityConfig().most_spikes


def test_two_heads_side_by_side_are_two(anatomy: Anatomy, scans: dict[str, np.ndarray]) -> None:
    for scan in scans.values():
        assert second_head(Volume(scan, anatomy.affine)) < 0.05
        both = np.concatenate([scan, np.zeros_like(scan[:6]), scan])
        assert second_head(Volume(both, anatomy.affine)) > 0.9


@pytest.mark.parametrize("radius_mm", [20, 28])
def test_a_large_cavity_is_as_wide_as_it_is(anatomy: Anatomy, scans: dict[str, np.ndarray], radius_mm: int) -> None:
    scan, brain = scans["T1w"], anatomy.brain
    grey, fluid = (float(np.median(scan[anatomy.fractions[tissue] > 0.9])) for tissue in (1, 0))
    plain = widest_fluid(scan, brain, SPACING, grey, fluid)
    middle = np.argwhere(brain).mean(axis=0) + np.array([8, 0, 4])
    distance = np.sqrt(((np.stack(np.indices(brain.shape), axis=-1) - middle) ** 2).sum(axis=-1)) * SPACING
    resected = np.where(distance < radius_mm, fluid, scan)
    wide = widest_fluid(resected, brain, SPACING, grey, fluid)
    assert plain < QualityConfig().most_fluid_mm < wide
    assert wide == pytest.approx(radius_mm, abs=5)


@pytest.mark.parametrize(
    ("stored", "top"), [(np.int16, 1.2 * 2**15), (np.uint8, 1.25 * 2**8), (np.uint16, 1.25 * 2**16)], ids=str
)
def test_integers_that_ran_over_are_refused(scans: dict[str, np.ndarray], stored: type, top: float) -> None:
    for scan in scans.values():
        assert wrapped(scan) == 0
        whole = (scan / scan.max() * top).astype(np.int64)
        figures = {"wrapped": float(wrapped(whole.astype(stored).astype(np.float32)))}
        with pytest.raises(RefusedError, match="integers that ran over"):
            check_scan("T1w", figures, QualityConfig())


def test_noise_below_zero_that_came_out_at_the_top_is_refused(anatomy: Anatomy, scans: dict[str, np.ndarray]) -> None:
    noisy = 2000 * scans["T1w"] + np.random.default_rng(0).normal(0, 3, scans["T1w"].shape)
    stored = noisy.astype(np.int64).astype(np.uint16).astype(np.float32)
    assert wrapped(stored) > QualityConfig().most_wrapped


def test_a_mask_beside_the_brain_is_as_far_as_it_was_moved(anatomy: Anatomy, scans: dict[str, np.ndarray]) -> None:
    volume = Volume(scans["T1w"], anatomy.affine)
    registration = Registration(np.eye(4), 0.6, "given space")
    right = mask_offset(volume, anatomy.brain, registration)
    moved = np.roll(anatomy.brain, 4, axis=0)
    assert right < QualityConfig().most_mask_offset_mm
    assert mask_offset(volume, moved, registration) == pytest.approx(12, abs=right + 1)
