"""Measures how well intensities separate the labelled tissues: one function per metric.

Each gives formula, citation, range and the better direction. Only labelled voxels inside the brain mask are used
(:class:`~mmh_ray.evaluation.inputs.labels.LabelMap`). No metric can detect wrong labels. Partial volume at their
borders affects every method alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mmh_ray.evaluation.inputs.labels import BRIGHTER, LabelMap
from mmh_ray.evaluation.metrics.agreement import tissue_contrast
from mmh_ray.evaluation.metrics.segmentation import TISSUES, mean_dice

LABEL_METRICS = ("label_auc_wm", "label_auc_csf", "label_contrast", "label_cnr", "label_dice", "label_inside")
"""Metrics of one image with a label map."""


class Medians(NamedTuple):
    """Median scaled intensity of each labelled tissue (NaN with too few voxels), and the name of the label table."""

    table: str
    csf: float
    gm: float
    wm: float

    @property
    def fluid_to_white(self) -> float:
        """``|WM − CSF|``, the range that differences are divided by."""
        return abs(self.wm - self.csf)


def auc(bright: np.ndarray, dark: np.ndarray) -> float:
    """Area under the ROC curve: probability that a voxel of ``bright`` is brighter than one of ``dark``.

    Ties count half. ``U / (n m)`` with Mann and Whitney's U (1947; Hanley & McNeil 1982), exact. Range 0 to 1, .5 for
    equal distributions; higher is better. No increasing intensity curve changes it, so only spatial changes count.
    Cannot see: how far apart the tissues are; which voxels are wrong.

    >>> auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    dark = np.sort(dark)
    bright = np.sort(bright)
    darker = np.searchsorted(dark, bright, "left").sum(dtype=np.float64)
    darker_or_equal = np.searchsorted(dark, bright, "right").sum(dtype=np.float64)
    return float((darker + darker_or_equal) / 2 / (dark.size * bright.size))


def median_contrast(bright: np.ndarray, dark: np.ndarray) -> float:
    """``(median bright − median dark) / median bright``, for example (WM − GM) / WM in T1w.

    A variant of Michelson's contrast with the brighter tissue as the unit. Range −∞ to 1; higher is better; negative if
    the order of the tissues is reversed. NaN if a median is below 0, because such images (z-scores) have no meaningful
    zero. Cannot see: noise; an offset, which changes it without any gain.
    """
    bright_median = float(np.median(bright))
    dark_median = float(np.median(dark))
    if not (bright_median > 0 and dark_median >= 0):
        return float("nan")
    return (bright_median - dark_median) / bright_median


def mixture_dice(segmented: np.ndarray, drawn: np.ndarray) -> float:
    """Mean Dice of GM and WM between a segmentation and the labels, in labelled voxels.

    :func:`~mmh_ray.evaluation.metrics.segmentation.mean_dice` without fluid. Range 0 to 1; higher is better. Cannot
    see: tissue segmented where nothing is labelled. It is sensitive to where the mixture's class borders fall, so read
    it with the AUC.
    """
    inside = np.where(drawn > 0, segmented, 0)
    # a tissue that is in neither image, here fluid, is left out of the mean
    segmented_without_fluid = inside * (inside >= 2)
    drawn_without_fluid = drawn * (drawn >= 2)
    return mean_dice(segmented_without_fluid, drawn_without_fluid)


def label_metrics(
    image: np.ndarray, segmented: np.ndarray | None, label_map: LabelMap, sequence: str
) -> dict[str, Callable[[], float]]:
    """Functions that compute :data:`LABEL_METRICS`, by name; ``segmented`` holds the tissues found by a mixture model.

    Metrics of tissues without labels are left out. Tissues are compared in the order of the sequence, so that 1 is
    always the best AUC.
    """
    functions: dict[str, Callable[[], float]] = {"label_inside": lambda: label_map.inside}
    if segmented is not None:
        functions["label_dice"] = partial(mixture_dice, segmented, label_map.tissues)
    tissues = set(TISSUES) - set(label_map.lacking)
    if tissues >= {"GM", "WM"}:
        functions["label_cnr"] = lambda: tissue_contrast(image, label_map.of("GM"), label_map.of("WM"))

    def intensities(tissue: str) -> np.ndarray:
        return image[label_map.of(tissue)]

    grey_white, grey_fluid = BRIGHTER.get(sequence, (None, None))
    if grey_white is not None and tissues >= set(grey_white):
        bright, dark = grey_white
        functions["label_auc_wm"] = lambda: auc(intensities(bright), intensities(dark))
        functions["label_contrast"] = lambda: median_contrast(intensities(bright), intensities(dark))
    if grey_fluid is not None and tissues >= set(grey_fluid):
        brighter, darker = grey_fluid
        functions["label_auc_csf"] = lambda: auc(intensities(brighter), intensities(darker))
    return functions


def medians(scaled: np.ndarray, label_map: LabelMap) -> Medians:
    """Medians of the labelled tissues in a scaled image."""
    values = dict.fromkeys(TISSUES, float("nan"))
    for tissue in set(TISSUES) - set(label_map.lacking):
        values[tissue] = float(np.median(scaled[label_map.of(tissue)]))
    return Medians(label_map.table, *values.values())


def median_change(a: Medians, b: Medians) -> float:
    """Mean over GM and WM of ``|median a − median b|`` as a share of the fluid-to-white range.

    For two scans of one person at one site, each scaled by its own percentiles. Range 0 to ∞; lower is better; NaN if
    the tables differ or a tissue is missing. Cannot see: where in the brain; an image without any contrast; a person
    who changed in between.
    """
    fluid_to_white = (a.fluid_to_white + b.fluid_to_white) / 2
    if a.table != b.table or not fluid_to_white > 0:
        return float("nan")
    mean_difference = (abs(a.gm - b.gm) + abs(a.wm - b.wm)) / 2
    return mean_difference / fluid_to_white


def spread_between_sites(values: np.ndarray, labels: np.ndarray) -> float:
    """Difference of a tissue's median between sites: mean over pairs of sites of ``|m_a − m_b| / range``.

    m is a site's mean over its images; the range is the mean over sites of ``|WM − CSF|``. Only sites with the same
    label table are paired. Range 0 to ∞; lower is better; NaN without a pair. Cannot see: where in the brain; people
    who differ between sites; labelling protocols that differ within one table.

    Parameters
    ----------
    values:
        ``(n, 2)`` median of the tissue and fluid-to-white range of each image, scaled by its own percentiles.
    labels:
        ``(n,)`` table and site of each image, from :func:`site_label`.
    """
    means_by_table: dict[str, dict[str, np.ndarray]] = {}
    for label in np.unique(labels):
        table, _, site = str(label).partition(":")
        means_by_table.setdefault(table, {})[site] = values[labels == label].mean(axis=0)
    differences = []
    ranges = []
    for means in means_by_table.values():
        for (median_a, _), (median_b, _) in combinations(means.values(), 2):
            differences.append(abs(median_a - median_b))
        if len(means) > 1:
            ranges += [fluid_to_white for _, fluid_to_white in means.values()]
    if not differences:
        return float("nan")
    mean_range = np.mean(ranges)
    return float(np.mean(differences) / mean_range) if mean_range > 0 else float("nan")


def site_label(table: str, site: str) -> str:
    """A table and a site as one label for :func:`spread_between_sites`."""
    return f"{table}:{site}"
