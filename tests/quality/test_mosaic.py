"""The mosaic shows the brain the right way up, in its own shape, and alike before and after."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from mmh_ray.quality.mosaic import LONGEST, mosaic, write_mosaic

pytestmark = pytest.mark.fast


def _ball(shape, affine, axes=(35, 42, 30)):
    """Mask of an ellipsoid of these half axes in mm around the middle of the field of view."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = nib.affines.apply_affine(affine, index)
    centre = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    return (((world - centre) / axes) ** 2).sum(axis=-1) < 1


def test_anterior_left_and_superior_are_where_they_should_be_for_every_storage_order():
    affine = np.diag([1.0, 1.0, 1.0, 1])
    mask = _ball((80, 96, 72), affine)
    volume = 0.2 * mask
    volume[:, 50:, :] += 0.4 * mask[:, 50:, :]  # anterior
    volume[:40] += 0.4 * mask[:40]  # the subject's left
    volume[:, :, 50:] = 1.0 * mask[:, :, 50:]  # superior
    picture = mosaic(volume, mask, affine).astype(float)
    height, width = picture.shape
    axial, sagittal = picture[:, : (width - LONGEST) // 4], picture[:, -LONGEST:]
    assert axial[: height // 3].mean() > 1.3 * axial[-height // 3 :].mean()
    assert axial[:, : axial.shape[1] // 2].mean() > 1.3 * axial[:, axial.shape[1] // 2 :].mean()
    assert sagittal[: height // 2].mean() > 1.3 * sagittal[height // 2 :].mean()
    lower = sagittal[height // 2 :]
    assert lower[:, lower.shape[1] // 2 :].mean() > 1.3 * lower[:, : lower.shape[1] // 2].mean()
    turned = nib.Nifti1Image(volume, affine).as_reoriented(nib.orientations.axcodes2ornt("SPR"))
    inside = nib.orientations.apply_orientation(mask, nib.orientations.axcodes2ornt("SPR"))
    assert np.array_equal(mosaic(np.asarray(turned.dataobj), np.asarray(inside), turned.affine), picture)


@pytest.mark.parametrize("spacing", [(1, 1, 5), (5, 1, 1), (0.9, 1.2, 2)])
def test_thick_slices_do_not_squash_the_brain(spacing):
    shape = tuple(round(100 / step) for step in spacing)
    affine = np.diag([*map(float, spacing), 1])
    mask = _ball(shape, affine)
    thick = mosaic(mask.astype(float), mask, affine)
    fine = np.eye(4)
    reference = _ball((100, 100, 100), fine)
    expected = mosaic(reference.astype(float), reference, fine)
    assert thick.shape == pytest.approx(expected.shape, rel=0.06)
    assert (thick > 127).sum() == pytest.approx((expected > 127).sum(), rel=0.1)


def test_before_and_after_lie_on_one_another(rng, tmp_path):
    affine = np.diag([1.0, 1.0, 1.0, 1])
    mask = _ball((80, 96, 72), affine)
    for name, volume in (("before", rng.normal(0.5, 0.2, mask.shape)), ("after", np.where(mask, 0.8, np.nan))):
        write_mosaic(tmp_path / "qc" / f"{name}.jpg", volume, mask, affine)
    before, after = (imread(tmp_path / "qc" / f"{name}.jpg") for name in ("before", "after"))
    assert before.shape == after.shape
    assert before.shape[0] == LONGEST
    assert np.ptp(after) > 150
    assert (tmp_path / "qc" / "before.jpg").read_bytes().startswith(bytes.fromhex("ffd8ff"))
    assert sorted(path.name for path in (tmp_path / "qc").iterdir()) == ["after.jpg", "before.jpg"]


def test_the_window_is_fixed_and_an_empty_mask_shows_everything():
    volume, nothing = np.full((20, 20, 20), 0.55), np.zeros((20, 20, 20), bool)
    assert mosaic(volume, nothing, np.eye(4)).shape == (LONGEST, 5 * LONGEST)
    assert np.unique(mosaic(volume, nothing, np.eye(4))).tolist() == [128]
    assert mosaic(volume * 4, nothing, np.eye(4)).min() == 255
    assert mosaic(-volume, nothing, np.eye(4)).max() == 0
