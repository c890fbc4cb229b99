"""Metrics do not depend on a method's name, and the outline of the brain does not identify a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from mmh_ray.evaluation.inputs.labels import LabelMap
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import LEAST_COMMON, Scan, ScoringSettings, Truth, common_masks
from mmh_ray.evaluation.metrics.agreement import truth_error
from mmh_ray.evaluation.metrics.cohort_inputs import cohort_inputs
from mmh_ray.evaluation.metrics.label_metrics import LABEL_METRICS
from mmh_ray.evaluation.metrics.outputs import make_output
from mmh_ray.evaluation.metrics.per_image import IMAGE_METRICS, measure_image
from mmh_ray.evaluation.metrics.per_pair import PAIR_METRICS, measure_pair
from mmh_ray.evaluation.metrics.registry import METRICS
from mmh_ray.evaluation.metrics.runner import MetricRunner
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
    return Scan(ImageRecord(f"{seed}", f"{seed}", "a", "T1w"), volume, mask, volume.data)


def _error(method: str, gains: tuple[float, ...]) -> float:
    joints = []
    for seed, gain in enumerate(gains):
        output = make_output(method, _scan(seed), gain * _scan(seed).volume.data, MetricRunner())
        joints.append(
            cohort_inputs(output, Truth(_truth(seed)), ScoringSettings((), {}, None, ()), MetricRunner()).joint
        )
    return truth_error([joint for joint in joints if joint is not None]).cohort


def test_error_to_the_truth_is_the_same_under_every_name_and_gain():
    raw = _error("raw", (1, 1, 1))
    assert 0 < raw < 0.5
    assert _error("foreign", (1, 1, 1)) == raw
    assert _error("ours", (7, 0.2, 40)) == pytest.approx(raw, rel=1e-4)


def test_the_common_part_is_what_everybody_of_one_grid_has():
    shifted = np.roll(MASK, 2, axis=0)
    records = [ImageRecord(name, name, "a", "T1w") for name in "abc"]
    common = common_masks([(records[0], MASK), (records[1], shifted), (records[2], np.ones((9, 9, 9), bool))])
    assert common.keys() == {("T1w", SHAPE)}  # nobody shares the third one's grid
    assert np.array_equal(common["T1w", SHAPE], MASK & shifted)
    small = np.zeros(SHAPE, bool)
    small.flat[: LEAST_COMMON - 1] = True
    assert not common_masks([(records[0], small), (records[1], small)])


def test_one_picture_for_everybody_has_one_persons_features_whatever_the_outlines():
    outlines = [MASK, np.roll(MASK, 2, axis=0)]
    records = [ImageRecord(str(seed), str(seed), "a", "T1w") for seed in (0, 1)]
    settings = ScoringSettings((), {}, None, (), common_masks=common_masks(zip(records, outlines, strict=True)))
    picture = _truth(5)
    inputs = [
        cohort_inputs(
            make_output("template", _scan(seed, mask), picture * mask, MetricRunner()), None, settings, MetricRunner()
        )
        for seed, mask in enumerate(outlines)
    ]
    assert inputs[0].common_features == inputs[1].common_features
    assert inputs[0].features != inputs[1].features


def test_a_drawn_lesion_and_the_raw_scans_tissues_count_without_any_truth(tmp_path: Path):
    scan, drawn = _scan(0), tmp_path / "sub-0_label-lesion_mask.nii.gz"
    lesion = np.zeros(SHAPE, np.float32)
    lesion[8:12, 9:13, 7:11] = 1
    write_volume(Volume(lesion, scan.volume.affine), drawn)
    bright = scan.volume.data + 300 * lesion
    scan = Scan(replace(scan.record, lesion_uri=str(drawn)), scan.volume.like(bright), MASK, bright)
    raw = make_output("raw", scan, bright, MetricRunner())
    plain = measure_image(raw, None, MetricRunner(), raw.labels).values
    assert plain["lesion_preservation"] == pytest.approx(1)
    assert plain["contrast_kept"] == 1
    assert "dice_raw" not in plain
    other = make_output("other", scan, _scan(0).volume.data, MetricRunner())
    erased = measure_image(other, None, MetricRunner(), raw.labels).values
    assert erased["lesion_preservation"] < 0.5
    assert 0 < erased["dice_raw"] < 1
    assert erased["volume_change_raw"] > 0
    write_volume(Volume(lesion[:-1], scan.volume.affine), drawn)
    runner = MetricRunner()
    assert "lesion_preservation" not in measure_image(raw, None, runner).values
    assert "lesion_preservation" in " ".join(runner.sentences())  # another grid is said, and costs no other measure


def test_contrast_is_not_lost_to_the_voxels_that_one_of_two_images_sorts_otherwise():
    tissues, noise = _truth(0), np.random.default_rng(1).normal(0, 0.04, (2, *SHAPE))
    scan = Scan(_scan(0).record, _scan(0).volume.like((tissues + noise[0]).astype(np.float32)), MASK, tissues)
    raw = make_output("raw", scan, scan.volume.data, MetricRunner())

    def kept(image: np.ndarray) -> float:
        output = make_output("other", scan, image, MetricRunner())
        return float(measure_image(output, None, MetricRunner(), raw.labels).values["contrast_kept"])

    assert kept(3 * scan.volume.data + 5) == pytest.approx(1, abs=1e-4)
    # of the same contrast, and other voxels sorted wrongly
    assert kept(tissues + noise[1]) == pytest.approx(1, abs=0.05)
    grey = (tissues > 0.4) & (tissues < 0.6)
    assert kept(tissues + 0.2 * grey + noise[1]) == pytest.approx(0.5, abs=0.05)


def _labelled(seed: int, **changes: Any) -> Scan:
    """A scan with a correct label map."""
    truth, scan = _truth(seed), _scan(seed)
    tissues = (1 + (truth > 0.4) + (truth > 0.6)).astype(np.uint8) * MASK
    return replace(scan, record=replace(scan.record, **changes), label_map=LabelMap(tissues, "tissues", 1.0, {}))


def test_labels_add_their_measures_and_change_no_other():
    scan = _labelled(0)
    unlabelled = make_output("raw", replace(scan, label_map=None), scan.volume.data, MetricRunner())
    plain = measure_image(unlabelled, None, MetricRunner()).values
    found = measure_image(make_output("raw", scan, scan.volume.data, MetricRunner()), None, MetricRunner()).values
    assert found["label_auc_wm"] == pytest.approx(1, abs=1e-3)
    assert found["label_dice"] > 0.95
    assert found["label_contrast"] == pytest.approx(0.4 / 0.9, abs=0.02)
    assert plain == {name: value for name, value in found.items() if name not in LABEL_METRICS}


def test_what_is_measured_of_an_image_is_among_the_means_and_has_a_heading():
    scan = _labelled(0)
    output = make_output("other", scan, scan.volume.data, MetricRunner())
    found = measure_image(output, Truth(_truth(0)), MetricRunner(), output.labels).values
    assert {"psnr_truth", "dice_raw", "label_auc_wm"} <= found.keys() <= {*IMAGE_METRICS}
    assert {*IMAGE_METRICS, *PAIR_METRICS} <= METRICS.keys()


def test_medians_of_a_persons_scans_at_one_site_are_compared_whatever_their_grids():
    first, second = _labelled(0), _labelled(0, image_id="again")
    dimmer = second.volume.data * (1 - 0.1 * (second.label_map.tissues == 2))  # type: ignore[union-attr]
    outputs = [
        make_output("raw", first, first.volume.data, MetricRunner()),
        make_output("raw", second, dimmer, MetricRunner()),
    ]
    found = measure_pair(*outputs, MetricRunner()).values
    assert found["label_retest"] == pytest.approx(0.05 / 0.7 / 2, rel=0.15)
    moved = replace(second, volume=replace(second.volume, affine=np.diag([5.0, 4, 4, 1])))
    other_grid = measure_pair(outputs[0], make_output("raw", moved, dimmer, MetricRunner()), MetricRunner()).values
    assert "retest_distance" not in other_grid
    assert other_grid["label_retest"] == found["label_retest"]
    elsewhere = make_output("raw", _labelled(0, site="b"), dimmer, MetricRunner())
    assert "label_retest" not in measure_pair(outputs[0], elsewhere, MetricRunner()).values
    unlabelled = make_output("raw", replace(second, label_map=None), dimmer, MetricRunner())
    assert "label_retest" not in measure_pair(outputs[0], unlabelled, MetricRunner()).values
