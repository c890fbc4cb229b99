"""What a method is charged for must not depend on its name, and people are looked for where no outline names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.evaluation.inputs.labels import Drawn
from mmh_ray.evaluation.inputs.scans import LEAST_COMMON, Scan, Settings, Truth, common_masks
from mmh_ray.evaluation.metrics.agreement import truth_error
from mmh_ray.evaluation.metrics.label_metrics import LABEL_MEASURES
from mmh_ray.evaluation.metrics.per_image import Clock, bulk_of, make_output, measure_image, measure_pair
from mmh_ray.imaging.volume import Volume, write_volume

pytestmark = pytest.mark.fast

SHAPE = (20, 22, 18)
MASK = np.zeros(SHAPE, bool)
MASK[3:-3, 3:-3, 3:-3] = True


def _truth(seed: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    return np.asarray(0.2 + 0.3 * (smooth > np.quantile(smooth, 0.2)) + 0.4 * (smooth > np.quantile(smooth, 0.6)))


def _scan(seed: int, mask: np.ndarray = MASK) -> Scan:
    noise = np.random.default_rng(seed).normal(0, 0.03, SHAPE)
    volume = Volume(((1 + seed) * 100 * (_truth(seed) + noise)).astype(np.float32), np.diag([4.0, 4, 4, 1]))
    row: dict[str, Any] = {"image_id": f"{seed}", "subject": f"{seed}", "site": "a", "sequence": "T1w"}
    return Scan(row | {"age": None, "sex": None, "outputs": {}}, volume, mask, volume.data)


def _error(method: str, gains: tuple[float, ...]) -> float:
    joints = []
    for seed, gain in enumerate(gains):
        output = make_output(method, _scan(seed), gain * _scan(seed).volume.data, Clock())
        joints.append(bulk_of(output, Truth(_truth(seed)), Settings((), {}, None, ()), Clock()).joint)
    return truth_error([joint for joint in joints if joint is not None]).cohort


def test_error_to_the_truth_is_the_same_under_every_name_and_gain():
    raw = _error("raw", (1, 1, 1))
    assert 0 < raw < 0.5
    assert _error("foreign", (1, 1, 1)) == raw
    assert _error("ours", (7, 0.2, 40)) == pytest.approx(raw, rel=1e-4)


def test_the_common_part_is_what_everybody_of_one_grid_has():
    shifted = np.roll(MASK, 2, axis=0)
    rows = [{"subject": name, "sequence": "T1w"} for name in "abc"]
    common = common_masks([(rows[0], MASK), (rows[1], shifted), (rows[2], np.ones((9, 9, 9), bool))])
    assert common.keys() == {("T1w", SHAPE)}  # nobody shares the third one's grid
    assert np.array_equal(common["T1w", SHAPE], MASK & shifted)
    small = np.zeros(SHAPE, bool)
    small.flat[: LEAST_COMMON - 1] = True
    assert not common_masks([(rows[0], small), (rows[1], small)])


def test_one_picture_for_everybody_has_one_persons_features_whatever_the_outlines():
    outlines = [MASK, np.roll(MASK, 2, axis=0)]
    rows = [{"subject": str(seed), "sequence": "T1w"} for seed in (0, 1)]
    settings = Settings((), {}, None, (), common=common_masks(zip(rows, outlines, strict=True)))
    picture = _truth(5)
    bulks = [
        bulk_of(make_output("template", _scan(seed, mask), picture * mask, Clock()), None, settings, Clock())
        for seed, mask in enumerate(outlines)
    ]
    assert bulks[0].person == bulks[1].person
    assert bulks[0].features != bulks[1].features


def test_a_drawn_lesion_and_the_raw_scans_tissues_count_without_any_truth(tmp_path: Path):
    scan, drawn = _scan(0), tmp_path / "sub-0_label-lesion_mask.nii.gz"
    lesion = np.zeros(SHAPE, np.float32)
    lesion[8:12, 9:13, 7:11] = 1
    write_volume(Volume(lesion, scan.volume.affine), drawn)
    bright = scan.volume.data + 300 * lesion
    scan = Scan(scan.row | {"lesion_uri": str(drawn)}, scan.volume.like(bright), MASK, bright)
    raw = make_output("raw", scan, bright, Clock())
    plain = measure_image(raw, None, Clock(), raw.labels)
    assert plain["lesion_preservation"] == pytest.approx(1)
    assert plain["contrast_kept"] == 1
    assert plain["dice_raw"] is None
    erased = measure_image(make_output("other", scan, _scan(0).volume.data, Clock()), None, Clock(), raw.labels)
    assert erased["lesion_preservation"] < 0.5
    assert 0 < erased["dice_raw"] < 1
    assert erased["volume_change_raw"] > 0
    write_volume(Volume(lesion[:-1], scan.volume.affine), drawn)
    clock = Clock()
    assert measure_image(raw, None, clock)["lesion_preservation"] is None
    assert "lesion_preservation" in " ".join(clock.said())  # another grid is said, and costs no other measure


def test_contrast_is_not_lost_to_the_voxels_that_one_of_two_images_sorts_otherwise():
    tissues, noise = _truth(0), np.random.default_rng(1).normal(0, 0.04, (2, *SHAPE))
    scan = Scan(_scan(0).row, _scan(0).volume.like((tissues + noise[0]).astype(np.float32)), MASK, tissues)
    raw = make_output("raw", scan, scan.volume.data, Clock())

    def kept(image: np.ndarray) -> float:
        output = make_output("other", scan, image, Clock())
        return float(measure_image(output, None, Clock(), raw.labels)["contrast_kept"])

    assert kept(3 * scan.volume.data + 5) == pytest.approx(1, abs=1e-4)
    # of the same contrast, and other voxels sorted wrongly
    assert kept(tissues + noise[1]) == pytest.approx(1, abs=0.05)
    grey = (tissues > 0.4) & (tissues < 0.6)
    assert kept(tissues + 0.2 * grey + noise[1]) == pytest.approx(0.5, abs=0.05)


def _labelled(seed: int, **changes: Any) -> Scan:
    """A scan in which others drew the tissues right."""
    truth, scan = _truth(seed), _scan(seed)
    tissues = (1 + (truth > 0.4) + (truth > 0.6)).astype(np.uint8) * MASK
    return replace(scan, row=scan.row | changes, drawn=Drawn(tissues, "tissues", 1.0, {}))


def test_labels_add_their_measures_and_change_no_other():
    scan = _labelled(0)
    plain = measure_image(make_output("raw", replace(scan, drawn=None), scan.volume.data, Clock()), None, Clock())
    found = measure_image(make_output("raw", scan, scan.volume.data, Clock()), None, Clock())
    assert found["label_auc_wm"] == pytest.approx(1, abs=1e-3)
    assert found["label_dice"] > 0.95
    assert found["label_contrast"] == pytest.approx(0.4 / 0.9, abs=0.02)
    assert all(plain[name] is None for name in LABEL_MEASURES)
    assert {name: value for name, value in plain.items() if name not in LABEL_MEASURES} == {
        name: value for name, value in found.items() if name not in LABEL_MEASURES
    }


def test_medians_of_a_persons_scans_at_one_site_are_compared_whatever_their_grids():
    first, second = _labelled(0), _labelled(0, image_id="again")
    dimmer = second.volume.data * (1 - 0.1 * (second.drawn.tissues == 2))  # type: ignore[union-attr]
    outputs = [make_output("raw", first, first.volume.data, Clock()), make_output("raw", second, dimmer, Clock())]
    found = measure_pair(*outputs, Clock())
    assert found["label_retest"] == pytest.approx(0.05 / 0.7 / 2, rel=0.15)
    moved = replace(second, volume=replace(second.volume, affine=np.diag([5.0, 4, 4, 1])))
    other_grid = measure_pair(outputs[0], make_output("raw", moved, dimmer, Clock()), Clock())
    assert other_grid["retest_distance"] is None
    assert other_grid["label_retest"] == found["label_retest"]
    elsewhere = make_output("raw", _labelled(0, site="b"), dimmer, Clock())
    assert measure_pair(outputs[0], elsewhere, Clock())["label_retest"] is None
    unlabelled = make_output("raw", replace(second, drawn=None), dimmer, Clock())
    assert measure_pair(outputs[0], unlabelled, Clock())["label_retest"] is None
