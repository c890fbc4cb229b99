"""Every cheat wins in the metric that it aims at, and is caught by another one, computed by the functions of the table.

Eight people, each scanned at four sites.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Scan, ScoringSettings, Truth, common_masks
from mmh_ray.evaluation.metrics.agreement import psnr, w1
from mmh_ray.evaluation.metrics.cohort import MethodCohort
from mmh_ray.evaluation.metrics.cohort_inputs import cohort_inputs
from mmh_ray.evaluation.metrics.cohort_metrics import cohort_metrics
from mmh_ray.evaluation.metrics.method_metrics import MethodResults, mean_metrics
from mmh_ray.evaluation.metrics.outputs import MethodOutput, make_output
from mmh_ray.evaluation.metrics.per_image import measure_image
from mmh_ray.evaluation.metrics.per_pair import measure_pair
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.statistics.metric_values import ValuesByMetric
from mmh_ray.evaluation.statistics.summary import difference, interval
from mmh_ray.imaging.volume import Volume
from mmh_ray.simulation.anatomy import Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, canonical, render
from tests.evaluation.cheaters import blur, copy_moments, mark_site, print_noise, return_template

pytestmark = pytest.mark.slow

MM = 4.0
PEOPLE = 8
CHANCE = 1 / 4

Method = Callable[[Scan, Truth], np.ndarray]


@cache
def _cohort() -> tuple[tuple[Scan, Truth], ...]:
    return tuple(pair for seed in range(PEOPLE) for pair in _scans(seed))


def _scans(seed: int) -> list[tuple[Scan, Truth]]:
    anatomy = simulate_anatomy(Person(seed, age=25 + 7 * seed), MM)
    labels = np.where(anatomy.brain, anatomy.fractions[:3].argmax(0) + 1, 0)
    truth = Truth(canonical(anatomy, "T1w", MM), labels=labels)
    rng = np.random.default_rng(seed)
    made = []
    for scanner in SITES[:4]:
        image = render(anatomy, scanner, "T1w", rng, MM) * anatomy.brain
        image_id = f"sub-{seed}_ses-{scanner.name}_T1w"
        record = ImageRecord(image_id, str(seed), scanner.name, "T1w", age=25.0 + 7 * seed, sex="MF"[seed % 2])
        made.append((Scan(record, Volume(image, np.diag([MM, MM, MM, 1])), anatomy.brain, image), truth))
    return made


@cache
def _outputs(method: Method) -> tuple[MethodOutput, ...]:
    return tuple(make_output(method.__name__, scan, method(scan, truth), MetricRunner()) for scan, truth in _cohort())


@cache
def _settings() -> ScoringSettings:
    return ScoringSettings(
        (), {}, None, (), common_masks=common_masks((scan.record, scan.mask) for scan, _ in _cohort())
    )


@cache
def _metrics(method: Method) -> ValuesByMetric:
    """All metrics of a method, except the convolutional probes."""
    runner, outputs = MetricRunner(), _outputs(method)
    truths = [truth for _, truth in _cohort()]
    images = [measure_image(output, truth, runner) for output, truth in zip(outputs, truths, strict=True)]
    people = [outputs[first : first + 4] for first in range(0, len(outputs), 4)]
    pairs = [measure_pair(a, b, runner) for own in people for a, b in combinations(own, 2)]
    inputs = [cohort_inputs(output, truth, _settings(), runner) for output, truth in zip(outputs, truths, strict=True)]
    features = np.array([list(of_image.features.values()) for of_image in inputs])
    raws = features if method is raw else _features_of_raw()
    cohort = MethodCohort(method.__name__, images, features, raws, inputs)
    return mean_metrics(MethodResults(images, pairs, inputs, inputs)) | cohort_metrics(cohort, 0, runner)


@cache
def _features_of_raw() -> np.ndarray:
    inputs = [cohort_inputs(output, None, _settings(), MetricRunner()) for output in _outputs(raw)]
    return np.array([list(of_image.features.values()) for of_image in inputs])


def _value(method: Method, measure: str) -> float:
    return interval(_metrics(method)[measure], 100).value


def _chance_high(method: Method, measure: str) -> float:
    return _metrics(method)[measure].guessed["chance_high"]


def _worse(method: Method, than: Method, measure: str, sign: int) -> bool:
    """Whether the whole interval of the paired difference has the given sign."""
    found = difference(_metrics(method)[measure], _metrics(than)[measure], 200)
    assert found is not None
    return bool(np.sign(found.low) == np.sign(found.high) == sign)


def raw(scan: Scan, truth: Truth) -> np.ndarray:
    return scan.volume.data


def ideal(scan: Scan, truth: Truth) -> np.ndarray:
    """The output of a perfect harmonizer: the truth with the same noise level everywhere."""
    seed = [int(scan.record.subject), *map(ord, scan.record.site)]
    return truth.noisefree + np.random.default_rng(seed).normal(0, 0.02, scan.mask.shape)


def moments(scan: Scan, truth: Truth) -> np.ndarray:
    target = _cohort()[0][0]
    return copy_moments(scan.volume.data, scan.mask, target.volume.data, target.mask)


def template(scan: Scan, truth: Truth) -> np.ndarray:
    return return_template(scan.volume.data, scan.mask, np.mean([ideal(*own) for own in _cohort()[:4]], axis=0))


def blurred(scan: Scan, truth: Truth) -> np.ndarray:
    return blur(scan.volume.data, scan.mask)


def _site(scan: Scan) -> int:
    return [scanner.name for scanner in SITES].index(scan.record.site)


def waved(scan: Scan, truth: Truth) -> np.ndarray:
    return mark_site(ideal(scan, truth), scan.mask, _site(scan))


def printed(scan: Scan, truth: Truth) -> np.ndarray:
    return print_noise(ideal(scan, truth), scan.mask, _site(scan))


def _w1_in_units(method: Method) -> float:
    people = [_outputs(method)[first : first + 4] for first in range(0, 4 * PEOPLE, 4)]
    pairs = [pair for own in people for pair in combinations(own, 2)]
    return float(np.mean([w1(a.image[a.scan.mask], b.image[b.scan.mask]) for a, b in pairs]))


def test_the_ideal_passes_what_catches_the_cheats():
    assert _value(raw, "site_probe") > 0.9
    assert _value(ideal, "site_probe") <= _chance_high(ideal, "site_probe") + 0.1
    assert _value(ideal, "site_probe_pattern") <= _chance_high(ideal, "site_probe_pattern") + 0.1
    assert _value(ideal, "ssim") > _value(raw, "ssim")
    assert _value(ideal, "truth_nrmse") < 0.5 * _value(raw, "truth_nrmse")
    assert _worse(ideal, raw, "dice_truth", +1)
    assert _value(ideal, "subject_nearest") > 0.9


def test_copied_moments_are_caught_by_the_retrained_probe_and_by_w1_of_images_scaled_by_themselves():
    assert _w1_in_units(moments) < 0.1 * _w1_in_units(raw)
    assert _value(moments, "site_probe") > 0.9
    assert _value(moments, "w1") == pytest.approx(_value(raw, "w1"), rel=1e-3)
    assert _value(moments, "truth_nrmse") == pytest.approx(_value(raw, "truth_nrmse"), rel=1e-3)


def test_returned_template_is_caught_by_hallucination_gradients_structure_and_the_search_for_people():
    assert _value(template, "ssim") == pytest.approx(1)
    assert _value(template, "site_probe") <= CHANCE + 0.15
    assert _worse(template, blurred, "hallucination", +1)
    assert _value(template, "hallucination") > 3 * _value(ideal, "hallucination")
    assert _worse(template, ideal, "gradient_correlation", -1)
    assert _worse(template, ideal, "structural_dissimilarity", +1)
    assert _value(template, "truth_nrmse") > _value(ideal, "truth_nrmse") + 0.3
    assert _value(template, "subject_nearest") == 0
    assert _value(template, "subject_silhouette") < _value(ideal, "subject_silhouette") - 0.1


def test_blur_is_caught_by_truth_tissue_gradients_and_smoothness():
    assert _value(blurred, "ssim") > _value(raw, "ssim")
    assert _value(blurred, "truth_nrmse") > _value(raw, "truth_nrmse")
    assert _worse(blurred, raw, "dice_truth", -1)
    assert _worse(blurred, raw, "gradient_correlation", -1)
    assert _worse(blurred, raw, "smoothness_mm", +1)
    assert _value(blurred, "site_probe") > _chance_high(blurred, "site_probe") + 0.2
    assert _value(blurred, "site_probe_frozen") < _value(blurred, "site_probe") - 0.2  # the frozen probe is fooled


def _nearly_ideal(method: Method) -> bool:
    pairs = zip(_outputs(method), _outputs(ideal), strict=True)
    return min(psnr(output.image, other.image, other.scan.mask) for output, other in pairs) > 38


def test_invisible_wave_fools_the_frozen_probe_and_is_caught_by_the_retrained_ones():
    assert _nearly_ideal(waved)
    assert _value(waved, "site_probe_frozen") <= CHANCE + 0.15
    assert _value(waved, "site_probe") > _chance_high(waved, "site_probe")
    assert _value(waved, "site_probe_pattern") > 0.9
    assert _value(waved, "ssim") > _value(raw, "ssim")


def test_invisible_noise_of_each_site_escapes_the_features_and_is_caught_by_its_pattern():
    assert _nearly_ideal(printed)
    assert _value(printed, "site_probe_frozen") <= CHANCE + 0.15
    assert _value(printed, "site_probe") <= _chance_high(printed, "site_probe") + 0.1
    assert _value(printed, "site_probe_pattern") > 0.95
    assert _value(printed, "truth_nrmse") == pytest.approx(_value(ideal, "truth_nrmse"), rel=0.1)
