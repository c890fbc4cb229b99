"""Fill values are found and excluded; dark air, saturated tissue and coarse grey levels are not mistaken for fill."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmh_ray.config import GridConfig, PrepareConfig, QualityConfig
from mmh_ray.imaging.fill import find_fill
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.ground import find_ground
from mmh_ray.imaging.preprocess import Prepared, prepare_volume
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, canonical, render

pytestmark = pytest.mark.fast

GRID = GridConfig(6.0, (32, 40, 32))
PLAIN = PrepareConfig(n4=False, register=False)


@pytest.fixture(scope="module")
def person() -> Anatomy:
    """A person with a scalp."""
    return simulate_anatomy(Person(4, scalp=True), 4.0)


@pytest.fixture(scope="module")
def head(person: Anatomy) -> np.ndarray:
    """The scan of a head in noisy air, in whole numbers."""
    rng = np.random.default_rng(0)
    signal = 500 * canonical(person, "T1w", 4.0)
    real, imaginary = rng.normal(0, 10, (2, *signal.shape))
    return np.round(np.hypot(signal + real, imaginary)).astype(np.float32)


def turned(data: np.ndarray, fill: float, order: int = 1, mode: str = "constant") -> np.ndarray:
    """The head tilted by 12 degrees on the same grid, with a fill value outside the old field of view."""
    turn = Rotation.from_euler("x", 12, degrees=True).as_matrix()
    middle = (np.array(data.shape) - 1) / 2
    return ndimage.affine_transform(data, turn, middle - turn @ middle, order=order, cval=fill, mode=mode)


def prepared(data: np.ndarray, person: Anatomy) -> Prepared:
    """Prepared with the true brain mask after the rotation."""
    brain = turned(person.brain.astype(np.float32), 0) > 0.5
    return prepare_volume(Volume(data.astype(np.float32), person.affine), brain, GRID, PLAIN)


def on_working_grid(found: Prepared, data: np.ndarray, person: Anatomy) -> np.ndarray:
    """The scan without its fill on the working grid, unit intensity, neither corrected nor masked."""
    cleaned = found.ground.applied_to(Volume(data.astype(np.float32), person.affine)).data
    signal = to_grid(cleaned - found.ground.floor, person.affine, found.affine, GRID.shape)
    return found.scaling.apply(signal + found.ground.floor)


FILLS = (-1000, -2000, -1024, -32768, 32767, 65535, 4095, -1e30, 1e30)


@pytest.mark.parametrize("fill", FILLS)
def test_fill_in_the_corners_of_a_rotated_grid_has_no_effect(person: Anatomy, head: np.ndarray, fill: float) -> None:
    plain, filled = prepared(turned(head, 0), person), prepared(turned(head, fill), person)
    assert filled.ground.fill is not None
    assert filled.ground.fill.values == (pytest.approx(fill),)
    assert filled.scaling.low == pytest.approx(plain.scaling.low, abs=1)
    assert filled.scaling.high == pytest.approx(plain.scaling.high, rel=1e-3)
    np.testing.assert_allclose(filled.image, plain.image, atol=2e-3)
    expected = on_working_grid(plain, turned(head, 0), person)
    np.testing.assert_allclose(on_working_grid(filled, turned(head, fill), person), expected, atol=0.05)  # air too
    assert any(step.startswith("fill: ") and f"{fill:g}" in step for step in filled.steps)


@pytest.mark.parametrize("fill", [-1000, -32768, 32767])
@pytest.mark.parametrize("order", [1, 3])
def test_interpolated_fill_leaves_no_streaks(person: Anatomy, head: np.ndarray, fill: float, order: int) -> None:
    """The kernel reaches into the fill; a cubic one rings on both sides, so it is not constant."""
    data = turned(head, fill, order, "grid-constant")
    plain = prepared(turned(head, 0, order, "grid-constant"), person)
    filled = prepared(data, person)
    assert filled.ground.fill is not None
    laid = filled.ground.applied_to(Volume(data.astype(np.float32), person.affine)).data
    nothing = turned(np.ones_like(head), 0, order=0) < 0.5
    streaks = filled.scaling.apply(laid)[nothing]
    assert np.quantile(streaks, 0.98) < 0.05
    assert streaks.mean() < 0.01
    if order == 3 and abs(fill) > 5000:  # then it has reached the tissue, too, and the image is flagged
        assert filled.ground.fill.step > QualityConfig().most_fill_step
        return
    unit = plain.scaling.high - plain.scaling.low
    assert filled.scaling.low == pytest.approx(plain.scaling.low, abs=0.08 * unit)
    assert filled.scaling.high == pytest.approx(plain.scaling.high, rel=0.01)
    both = plain.mask & filled.mask
    assert both.sum() > 0.9 * plain.mask.sum()
    assert np.quantile(np.abs(filled.image - plain.image)[both], 0.95) < 0.08


@pytest.mark.parametrize("shift", ["standard scores", "300 below zero"])
@pytest.mark.parametrize("fill", [0.0, -2000.0])
def test_padding_with_a_value_among_the_tissues_is_found(
    person: Anatomy, head: np.ndarray, shift: str, fill: float
) -> None:
    """Zeros around a scan whose own air lies below zero."""
    data = (head - head.mean()) / head.std() if shift == "standard scores" else head - 300
    plain = prepared(turned(data, float(data.min())), person)
    filled = prepared(turned(data, fill), person)
    assert filled.scaling.low == pytest.approx(plain.scaling.low, abs=0.02 * (plain.scaling.high - plain.scaling.low))
    np.testing.assert_allclose(filled.image, plain.image, atol=0.02)
    nothing = turned(np.ones_like(head), 0, order=0) < 0.5
    assert filled.ground.holes is not None
    assert filled.ground.holes[nothing].mean() > 0.99


def corners(head: np.ndarray) -> np.ndarray:
    head[:8, :8] = -2000
    head[-6:, :, -6:] = -2000
    return head


def several(head: np.ndarray) -> np.ndarray:
    head[:5] = -2000
    head[-5:] = -1000
    head[:, -4:, :10] = 30000
    return head


def box(head: np.ndarray) -> np.ndarray:
    head[20:26, 22:28, 18:24] = -1000
    return head


def bright_box(head: np.ndarray) -> np.ndarray:
    head[20:26, 22:28, 18:24] = 32767
    return head


def scattered(head: np.ndarray) -> np.ndarray:
    head.reshape(-1)[::397] = -32768
    return head


@pytest.mark.parametrize("spoil", [corners, several, box, bright_box, scattered])
def test_fill_is_found_wherever_it_lies(person: Anatomy, head: np.ndarray, spoil) -> None:
    spoilt = spoil(head.copy())
    fill = find_fill(spoilt)
    assert fill is not None
    np.testing.assert_array_equal(fill.mask, spoilt != head)
    assert set(fill.values) == set(np.unique(spoilt[spoilt != head]))


def in_standard_scores(head: np.ndarray) -> np.ndarray:
    return (head - head.mean()) / head.std()


def shifted(head: np.ndarray) -> np.ndarray:
    return head - 300


def saturated(head: np.ndarray) -> np.ndarray:
    return np.minimum(head, np.percentile(head[head > 50], 97))


def coarse(head: np.ndarray) -> np.ndarray:
    return np.round(np.minimum(head / np.percentile(head, 99), 1) * 15)


def in_dark_air(head: np.ndarray) -> np.ndarray:
    return np.where(head > 60, head, 0)


def in_dark_air_below_zero(head: np.ndarray) -> np.ndarray:
    return np.where(head > 60, head, 0) - 300


def above_zero(head: np.ndarray) -> np.ndarray:
    return head + 1000


@pytest.mark.parametrize("change", [np.copy, in_standard_scores, shifted, saturated, coarse, in_dark_air, above_zero])
def test_in_a_scan_without_fill_none_is_found(head: np.ndarray, change) -> None:
    assert find_fill(change(head).astype(np.float32)) is None


def test_dark_air_below_zero_may_count_as_fill_but_does_not_move_the_floor(person: Anatomy, head: np.ndarray) -> None:
    plain = prepared(turned(in_dark_air(head), 0), person)
    below = prepared(turned(in_dark_air_below_zero(head), -300), person)
    np.testing.assert_allclose(below.image, plain.image, atol=0.1)


def test_a_brain_mask_ends_at_the_fill(person: Anatomy, head: np.ndarray) -> None:
    cut = head.copy()
    cut[:, :, 30:] = -1000
    found = prepare_volume(Volume(cut, person.affine), person.brain, GRID, PLAIN)
    assert not found.brain[:, :, 30:].any()
    np.testing.assert_array_equal(found.brain[:, :, :30], person.brain[:, :, :30])
    assert found.scaling.low == pytest.approx(0, abs=1)


@pytest.mark.parametrize("height_mm", [70, 90, 110])
def test_the_upper_part_of_a_head_with_dark_air_is_not_a_stripped_brain(
    person: Anatomy, head: np.ndarray, height_mm: int
) -> None:
    dark = in_dark_air(head)
    top = int(np.flatnonzero((dark > 0).any(axis=(0, 1)))[-1])
    start = top - round(height_mm / 4.0)
    affine = person.affine.copy()
    affine[2, 3] += 4.0 * start
    assert not find_ground(Volume(dark[:, :, start:].astype(np.float32), affine)).stripped


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
@pytest.mark.parametrize("background", [0.0, -300.0])
def test_a_brain_without_its_skull_is_stripped(sequence: str, background: float) -> None:
    anatomy = simulate_anatomy(Person(1), 4.0)
    scan = 1000 * render(anatomy, SITES[0], sequence, np.random.default_rng(1), 4.0)
    data = np.where(anatomy.brain, scan + background, background).astype(np.float32)
    assert find_ground(Volume(data, anatomy.affine)).stripped
