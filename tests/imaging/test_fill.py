"""Fill values are found wherever they lie and whatever they are; what was measured is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.imaging.anatomy import Person, simulate_anatomy
from mmh_ray.imaging.fill import find_fill
from mmh_ray.imaging.ground import find_ground, is_stripped
from mmh_ray.imaging.phantom import SITES, render
from mmh_ray.imaging.volume import Volume

pytestmark = pytest.mark.fast

SPACING = 4.0


@pytest.fixture(scope="module")
def head() -> Volume:
    """A noisy T1w head with its scalp, 0 to about 1,000."""
    anatomy = simulate_anatomy(Person(5, scalp=True), SPACING)
    data = render(anatomy, SITES[0], "T1w", np.random.default_rng(1), SPACING)
    return Volume((1000 * data / data.max()).astype(np.float32), anatomy.affine)


def turned(data: np.ndarray, fill: float, order: int) -> np.ndarray:
    """The head turned by 12 degrees, with the fill where it comes from nowhere."""
    return ndimage.rotate(data, 12, (1, 2), reshape=False, order=order, cval=fill).astype(np.float32)


def outside(data: np.ndarray) -> np.ndarray:
    """What the turned head has from nowhere."""
    return ndimage.rotate(np.ones_like(data), 12, (1, 2), reshape=False, order=0, cval=0) == 0


@pytest.mark.parametrize("fill", [-1000.0, -32768.0, -1e30, -1.0e4])
@pytest.mark.parametrize("order", [1, 3])
def test_what_resampling_put_around_a_turned_head_is_found(head: Volume, fill: float, order: int) -> None:
    found = find_fill(turned(head.data, fill, order))
    assert found is not None
    nowhere = outside(head.data)
    assert found.mask[nowhere].mean() > 0.97
    assert found.mask[~nowhere].mean() < 0.15  # the rim in which interpolation mixed the two
    assert fill in [pytest.approx(value, rel=1e-3) for value in found.values]


@pytest.mark.parametrize("fills", [(-2000.0,), (-2000.0, -1024.0), (65535.0,), (-50.0,), (4095.0,)])
def test_corners_of_a_value_that_no_measurement_gave_are_found(head: Volume, fills: tuple[float, ...]) -> None:
    data = head.data.copy()
    corners = np.zeros(data.shape, bool)
    places = [(slice(None, 9),) * 3, (slice(-9, None),) * 3]
    for number, place in enumerate(places):
        data[place] = fills[number % len(fills)]
        corners[place] = True
    found = find_fill(data)
    assert found is not None
    assert found.mask[corners].all()
    assert found.mask[~corners].mean() < 0.02


def test_a_hole_inside_is_found_too(head: Volume) -> None:
    data = head.data.copy()
    middle = tuple(slice(n // 2 - 3, n // 2 + 3) for n in data.shape)
    data[middle] = -999
    found = find_fill(data)
    assert found is not None
    assert found.mask[middle].all()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data,
        lambda data: data - 300,
        lambda data: (data - data.mean()) / data.std(),
        lambda data: np.round(data / 8) * 8,
        lambda data: np.where(data < 60, 0, data),
        lambda data: np.pad(data, 6),
        lambda data: data * 1e-6,
    ],
    ids=["plain", "shifted", "standard scores", "grey levels", "dark air", "zero padding", "other units"],
)
def test_measured_values_are_no_fill(head: Volume, change) -> None:
    found = find_fill(change(head.data).astype(np.float32))
    assert found is None or found.mask.mean() < 1e-3


def test_the_floor_is_that_of_the_scan_and_not_of_the_fill(head: Volume) -> None:
    plain, filled = (Volume(turned(head.data, fill, 1), head.affine) for fill in (0.0, -1000.0))
    assert find_ground(filled).floor == pytest.approx(find_ground(plain).floor, abs=5)
    laid = find_ground(filled).lay(filled)
    assert laid.data.min() >= -5
    nowhere = outside(head.data)
    assert np.abs(laid.data[~nowhere] - plain.data[~nowhere]).mean() < 5


@pytest.mark.parametrize("height_mm", [70, 90, 110])
def test_the_upper_part_of_a_head_with_dark_air_is_no_stripped_brain(head: Volume, height_mm: int) -> None:
    dark = np.where(head.data < 60, 0, head.data)
    top = int(np.flatnonzero((dark > 0).any(axis=(0, 1)))[-1])
    start = top - round(height_mm / SPACING)
    affine = head.affine.copy()
    affine[2, 3] += SPACING * start
    assert not is_stripped(Volume(dark[:, :, start:], affine))


@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
@pytest.mark.parametrize("background", [0.0, -300.0])
def test_a_brain_without_its_skull_is_stripped(sequence: str, background: float) -> None:
    anatomy = simulate_anatomy(Person(1), SPACING)
    scan = 1000 * render(anatomy, SITES[0], sequence, np.random.default_rng(1), SPACING)
    data = np.where(anatomy.brain, scan + background, background).astype(np.float32)
    assert is_stripped(Volume(data, anatomy.affine))
