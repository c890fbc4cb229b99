"""The picture of a scan before and after: what is drawn where, and which images cannot be compared."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import mmh_ray as mmh
from mmh_ray.errors import DataError

pytestmark = pytest.mark.fast

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


@pytest.fixture
def before(ball: np.ndarray, rng: np.random.Generator) -> nib.Nifti1Image:
    data = ball * rng.uniform(100, 200, ball.shape)
    return nib.Nifti1Image(data.astype(np.float32), AFFINE)


def drawn(figure, row: int, column: int) -> np.ndarray:
    return np.asarray(figure.axes[3 * row + column].images[0].get_array())


def test_an_image_beside_itself_shows_no_difference_in_any_unit(before: nib.Nifti1Image) -> None:
    brighter = nib.Nifti1Image(np.asarray(before.dataobj) * 7, AFFINE)
    figure = mmh.compare(before, brighter)
    for row in range(3):
        assert np.abs(drawn(figure, row, 2)).max() < 1e-5
        assert drawn(figure, row, 0).max() > 0.5


def test_what_is_brighter_afterwards_is_above_0(before: nib.Nifti1Image) -> None:
    data = np.array(before.dataobj)
    data[8, 10, 6:8] *= 2
    difference = drawn(mmh.compare(before, nib.Nifti1Image(data, AFFINE)), 0, 2)
    assert difference.max() > 0.4
    assert np.unravel_index(difference.argmax(), difference.shape) == (10, 8)


def test_slices_do_not_depend_on_how_voxels_are_stored(before: nib.Nifti1Image) -> None:
    turned = before.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    straight = mmh.compare(before, before)
    other = mmh.compare(turned, turned)
    for row in range(3):
        np.testing.assert_allclose(drawn(other, row, 0), drawn(straight, row, 0), atol=1e-6)


def test_a_fourth_axis_of_one_volume_is_ignored(before: nib.Nifti1Image) -> None:
    stored = nib.Nifti1Image(np.asarray(before.dataobj)[..., None], AFFINE)
    np.testing.assert_array_equal(drawn(mmh.compare(stored, before), 0, 0), drawn(mmh.compare(before, before), 0, 0))


def test_the_figure_can_be_written(before: nib.Nifti1Image, tmp_path) -> None:
    mmh.compare(before, before, title="sub-01").savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_images_that_do_not_share_a_grid_are_refused(before: nib.Nifti1Image) -> None:
    data = np.asarray(before.dataobj)
    moved = AFFINE.copy()
    moved[0, 3] = 5
    others = {
        "shape": nib.Nifti1Image(data[1:], AFFINE),
        "affines": nib.Nifti1Image(data, moved),
        "3-D": nib.Nifti1Image(data[..., None].repeat(2, 3), AFFINE),
        "NaN": nib.Nifti1Image(data * np.float32("nan"), AFFINE),
        "above 0": nib.Nifti1Image(data * 0, AFFINE),
    }
    for word, other in others.items():
        with pytest.raises(DataError, match=word):
            mmh.compare(before, other)
