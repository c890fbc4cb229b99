"""Every cheat wins where it means to, and is caught by a named measure. Eight people, each scanned at four sites."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest

from mmh_ray.evaluation.clustering import same_subject_nearest, standardise
from mmh_ray.evaluation.features import image_features
from mmh_ray.evaluation.harm import hallucination, smoothness_mm, structural_dissimilarity
from mmh_ray.evaluation.metrics import gradient_correlation, psnr, scale_by_percentiles, ssim, truth_nrmse, w1
from mmh_ray.evaluation.probes import ProbeResult, site_probe
from mmh_ray.evaluation.segmentation import segment_tissues, tissue_dice, tissue_labels
from mmh_ray.evaluation.statistics import paired_difference
from mmh_ray.imaging.anatomy import Person, simulate_anatomy
from mmh_ray.imaging.phantom import SITES, canonical, render
from tests.evaluation.cheaters import blur, copy_moments, mark_site, return_template

pytestmark = pytest.mark.slow

MM = 4.0
PEOPLE = 8
CHANCE = 1 / 4


class Scan(NamedTuple):
    """A phantom at a site; ``ideal`` is what a perfect harmonizer would give: the truth under noise alike everywhere."""

    image: np.ndarray
    mask: np.ndarray
    truth: np.ndarray
    ideal: np.ndarray
    labels: np.ndarray
    subject: str
    site: int


Method = Callable[[Scan], np.ndarray]


@cache
def _cohort() -> tuple[Scan, ...]:
    return tuple(scan for seed in range(PEOPLE) for scan in _scans(seed))


def _scans(seed: int) -> list[Scan]:
    anatomy = simulate_anatomy(Person(seed, age=25 + 7 * seed), MM)
    mask, truth = anatomy.brain, canonical(anatomy, "T1w", MM)
    labels = np.where(mask, anatomy.fractions[:3].argmax(0) + 1, 0)
    rng = np.random.default_rng(seed)
    made = []
    for site, scanner in enumerate(SITES[:4]):
        image = render(anatomy, scanner, "T1w", rng, MM) * mask
        made.append(Scan(image, mask, truth, truth + rng.normal(0, 0.02, mask.shape), labels, str(seed), site))
    return made


@cache
def _outputs(method: Method) -> tuple[np.ndarray, ...]:
    return tuple(method(scan) for scan in _cohort())


@cache
def _features(method: Method) -> np.ndarray:
    pairs = zip(_outputs(method), _cohort(), strict=True)
    return np.array([list(image_features(output, scan.mask, (MM,) * 3).values()) for output, scan in pairs])


def raw(scan: Scan) -> np.ndarray:
    return scan.image


def ideal(scan: Scan) -> np.ndarray:
    return scan.ideal


def moments(scan: Scan) -> np.ndarray:
    target = _cohort()[0]
    return copy_moments(scan.image, scan.mask, target.image, target.mask)


def template(scan: Scan) -> np.ndarray:
    return return_template(scan.image, scan.mask, np.mean([own.ideal for own in _cohort()[:4]], axis=0))


def blurred(scan: Scan) -> np.ndarray:
    return blur(scan.image, scan.mask)


def marked(scan: Scan) -> np.ndarray:
    return mark_site(scan.ideal, scan.mask, scan.site)


def _probe(method: Method, trained_on: Method | None = None) -> ProbeResult:
    site, subject = ([str(getattr(scan, name)) for scan in _cohort()] for name in ("site", "subject"))
    known = None if trained_on is None else _features(trained_on)
    return site_probe(_features(method), site, subject, trained_on=known)


def _between_sites(method: Method, measure: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> float:
    """Mean of a measure over all pairs of scans of a person."""
    found = []
    for first in range(0, 4 * PEOPLE, 4):
        mask = _cohort()[first].mask
        own = _outputs(method)[first : first + 4]
        found += [measure(a, b, mask) for a, b in combinations(own, 2)]
    return float(np.mean(found))


def _scaled_ssim(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return ssim(scale_by_percentiles(a, mask), scale_by_percentiles(b, mask), mask)


def _scaled_w1(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return w1(scale_by_percentiles(a, mask)[mask], scale_by_percentiles(b, mask)[mask])


def _w1_in_units(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return w1(a[mask], b[mask])


def _per_image(method: Method, measure: Callable[[np.ndarray, Scan], float]) -> list[float]:
    return [measure(output, scan) for output, scan in zip(_outputs(method), _cohort(), strict=True)]


def _gradients_kept(output: np.ndarray, scan: Scan) -> float:
    return gradient_correlation(output, scan.image, scan.mask)


def _invented(output: np.ndarray, scan: Scan) -> float:
    return hallucination(output, scan.image, scan.mask)


def _structure_lost(output: np.ndarray, scan: Scan) -> float:
    return structural_dissimilarity(output, scan.image, scan.mask)


def _white_and_grey(output: np.ndarray, scan: Scan) -> float:
    found = tissue_dice(tissue_labels(segment_tissues(output, scan.mask, "T1w")), scan.labels)
    return (found["GM"] + found["WM"]) / 2


def _truth_errors(method: Method) -> np.ndarray:
    """Of images scaled by themselves: a scanner's gain, which means nothing, is not held against raw and blurred scans."""
    truths, masks = zip(*((scan.truth, scan.mask) for scan in _cohort()), strict=True)
    scaled = [scale_by_percentiles(output, mask) for output, mask in zip(_outputs(method), masks, strict=True)]
    return truth_nrmse(scaled, truths, masks).per_image


def _worse(method: Method, than: Method, measure: Callable[[np.ndarray, Scan], float], sign: int) -> bool:
    """Whether the paired difference has the given sign with its whole interval."""
    subjects = [scan.subject for scan in _cohort()]
    found = paired_difference(_per_image(method, measure), _per_image(than, measure), subjects)
    return bool(np.sign(found.low) == np.sign(found.high) == sign and found.p < 0.05)


def test_the_ideal_passes_what_catches_the_cheats():
    assert _probe(raw).balanced_accuracy > 0.9
    found = _probe(ideal)
    assert found.balanced_accuracy < 0.5 * _probe(raw).balanced_accuracy
    assert found.balanced_accuracy <= found.chance_high + 0.1
    assert _between_sites(ideal, _scaled_ssim) > _between_sites(raw, _scaled_ssim)
    assert _truth_errors(ideal).mean() < 0.5 * _truth_errors(raw).mean()
    assert _worse(ideal, raw, _white_and_grey, +1)


def test_copied_moments_are_caught_by_the_retrained_probe_and_by_w1_of_images_scaled_by_themselves():
    assert _between_sites(moments, _w1_in_units) < 0.1 * _between_sites(raw, _w1_in_units)
    assert _probe(moments).balanced_accuracy > 0.9
    assert _between_sites(moments, _scaled_w1) == pytest.approx(_between_sites(raw, _scaled_w1), rel=1e-3)


def test_returned_template_is_caught_by_hallucination_gradients_structure_and_the_search_for_people():
    assert _between_sites(template, _scaled_ssim) == pytest.approx(1)
    assert _probe(template).balanced_accuracy <= CHANCE + 0.15
    assert _worse(template, blurred, _invented, +1)
    assert np.mean(_per_image(template, _invented)) > 3 * np.mean(_per_image(ideal, _invented))
    assert _worse(template, ideal, _gradients_kept, -1)
    assert _worse(template, ideal, _structure_lost, +1)
    assert _truth_errors(template).mean() > _truth_errors(ideal).mean() + 0.3


def test_blur_is_caught_by_truth_tissue_gradients_and_smoothness():
    assert _between_sites(blurred, _scaled_ssim) > _between_sites(raw, _scaled_ssim)
    assert _truth_errors(blurred).mean() > _truth_errors(raw).mean()
    assert _worse(blurred, raw, _white_and_grey, -1)
    assert _worse(blurred, raw, _gradients_kept, -1)
    assert _worse(blurred, raw, lambda output, scan: smoothness_mm(output, scan.mask, (MM,) * 3), +1)
    found = _probe(blurred)
    assert found.balanced_accuracy > found.chance_high + 0.2
    assert (
        _probe(blurred, trained_on=raw).balanced_accuracy < found.balanced_accuracy - 0.2
    )  # the frozen probe is fooled


def test_invisible_mark_fools_the_frozen_probe_and_is_caught_by_the_retrained_one():
    pairs = zip(_outputs(marked), _cohort(), strict=True)
    assert min(psnr(output, scan.ideal, scan.mask) for output, scan in pairs) > 40
    assert _probe(marked, trained_on=raw).balanced_accuracy <= CHANCE + 0.15
    found = _probe(marked)
    assert found.balanced_accuracy > found.chance_high + 0.2
    assert _between_sites(marked, _scaled_ssim) > _between_sites(raw, _scaled_ssim)


def test_people_are_found_again_unless_everybody_gets_the_template():
    subject, site = ([str(getattr(scan, name)) for scan in _cohort()] for name in ("subject", "site"))

    def found(method: Method) -> float:
        thumbs = [
            scale_by_percentiles(o, s.mask)[::2, ::2, ::2].ravel()
            for o, s in zip(_outputs(method), _cohort(), strict=True)
        ]
        return float(same_subject_nearest(standardise(np.array(thumbs)), subject, site).mean())

    assert found(ideal) > 0.9
    uniform = np.mean([scan.mask for scan in _cohort()], axis=0) > 0.999
    thumbs = np.array([output[uniform] for output in _outputs(template)])
    assert same_subject_nearest(thumbs, subject, site).mean() == 0
