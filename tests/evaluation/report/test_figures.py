"""Pictures are written, show their data, and have the right orientation."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from mmh_ray.evaluation.report.figures import DIVERGING, before_after, differences, histograms
from mmh_ray.imaging.slices import middle_slice

pytestmark = pytest.mark.fast

SITES = ["alpha", "beta", "gamma"]


def _slices(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.pad(rng.uniform(size=(30, 24)), 4) for _ in SITES]


def _pixels(path) -> np.ndarray:
    assert not [file for file in path.parent.iterdir() if file != path]
    return imread(path)[..., :3]


def test_before_after_shows_every_slice_on_black(tmp_path):
    path = tmp_path / "figures" / "T1w.png"
    before_after(path, {"raw": _slices(0), "harmonized": _slices(1)}, SITES, "T1w")
    full = _pixels(path)
    assert np.median(full) < 0.2
    assert full[0, 0].tolist() == [0, 0, 0]
    assert full.std() > 0.1
    before_after(path, {"raw": _slices(0), "harmonized": [np.zeros((38, 32))] * 3}, SITES, "T1w")
    assert _pixels(path).mean() < 0.8 * full.mean()


def test_differences_are_black_where_nothing_changed_and_coloured_where_it_did(tmp_path):
    path, same = tmp_path / "d.png", [np.full((38, 32), 0.4)] * 3
    differences(path, same, same, SITES, "T1w")
    colourful = np.ptp(_pixels(path), axis=-1) > 0.3
    unchanged = colourful.mean()  # the colour bar
    differences(path, same, [image + 0.3 for image in same], SITES, "T1w")
    assert (np.ptp(_pixels(path), axis=-1) > 0.3).mean() > unchanged + 0.1
    assert DIVERGING(0.5)[:3] == pytest.approx((0, 0, 0), abs=0.02)


def test_histograms_draw_one_curve_a_site(tmp_path):
    path, rng = tmp_path / "h.png", np.random.default_rng(0)
    values = {site: rng.normal(0.5, 0.1 + 0.05 * i, 4000) for i, site in enumerate(SITES)}
    histograms(path, values, {}, "T1w")
    pixels = _pixels(path)
    vivid = (np.ptp(pixels, axis=-1) > 0.3).sum(axis=0)
    left, right = np.array_split(vivid, 2)
    assert left.sum() > 5 * right.sum() > 0  # curves on the left, only part of the legend on the right


def test_middle_slice_is_axial_anterior_up_and_the_same_for_every_storage_order():
    data, mask = np.zeros((10, 12, 14), np.float32), np.zeros((10, 12, 14), bool)
    mask[2:8, 2:10, 4:11] = True
    data[2, 9, 7] = 1  # left, anterior, middle in RAS
    data[0, 0, 7] = 5  # outside the brain
    picture = middle_slice(data, mask, np.eye(4))
    assert picture.shape == (12, 10)
    assert np.argwhere(picture).tolist() == [[2, 2]]
    image = nib.Nifti1Image(data, np.eye(4))
    flipped = image.as_reoriented(nib.orientations.axcodes2ornt("SPL"))
    turned = nib.orientations.apply_orientation(mask, nib.orientations.axcodes2ornt("SPL"))
    assert nib.aff2axcodes(flipped.affine) != ("R", "A", "S")
    again = middle_slice(np.asarray(flipped.dataobj), np.asarray(turned), flipped.affine)
    assert np.array_equal(again, picture)
