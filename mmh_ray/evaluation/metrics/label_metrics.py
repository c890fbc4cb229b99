"""Do the tissues that others drew stand apart? One function per measure, with formula, citation, range and better way.

All look at labelled voxels inside the brain mask alone (:class:`~mmh_ray.evaluation.inputs.labels.Drawn`). None of them can
see whether the labels are right: drawn on one scan, they are as good as whoever drew them, and partial volume at their
borders counts against every method alike.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mmh_ray.evaluation.inputs.labels import BRIGHTER, Drawn
from mmh_ray.evaluation.metrics.agreement import tissue_contrast
from mmh_ray.evaluation.metrics.segmentation import TISSUES, mean_dice

LABEL_MEASURES = ("label_auc_wm", "label_auc_csf", "label_contrast", "label_cnr", "label_dice", "label_inside")
"""What an image has of the tissues that others drew in it."""


class Medians(NamedTuple):
    """Median scaled intensity of each tissue that was drawn, and the table that told them.

    NaN for a tissue of too few voxels.
    """

    table: str
    csf: float
    gm: float
    wm: float

    @property
    def reach(self) -> float:
        """``|WM − CSF|``, the range that differences are given in."""
        return abs(self.wm - self.csf)


def auc(bright: np.ndarray, dark: np.ndarray) -> float:
    """Chance that a voxel of one set is brighter than one of another, ties counting half: the area under the ROC curve.

    ``U / (n m)`` with Mann and Whitney's U (1947; Hanley & McNeil 1982), exact. Range 0 to 1, .5 for equal
    distributions; higher is better. No increasing intensity curve can change it, so it judges what was done to places.
    Cannot see: how far apart; which voxels are wrong.

    >>> auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    ordered, values = np.sort(dark), np.sort(bright)
    below = np.searchsorted(ordered, values, "left").sum(dtype=np.float64)
    up_to = np.searchsorted(ordered, values, "right").sum(dtype=np.float64)
    return float((below + up_to) / 2 / (ordered.size * values.size))


def median_contrast(bright: np.ndarray, dark: np.ndarray) -> float:
    """``(median bright − median dark) / median bright``, as (WM − GM) / WM in T1w.

    Michelson's idea with the brighter tissue as the unit. Range −∞ to 1; higher is better, negative where the tissues
    have changed places. NaN where a median is below 0: such images (z-scores) have no zero to count from. Cannot see:
    noise; an offset, which changes it although nothing was gained.
    """
    high, low = float(np.median(bright)), float(np.median(dark))
    return (high - low) / high if high > 0 and low >= 0 else float("nan")


def mixture_dice(found: np.ndarray, drawn: np.ndarray) -> float:
    """Mean Dice of GM and WM between a segmentation and the labels, at the voxels where a tissue was drawn.

    :func:`~mmh_ray.evaluation.metrics.segmentation.mean_dice` without fluid. Range 0 to 1; higher is better. Cannot see: tissue
    found where none was drawn. It jumps with where the classes of the mixture fall: read it beside the AUC.
    """
    inside = np.where(drawn > 0, found, 0)
    # a tissue that neither has, here fluid, is left out of the mean
    return mean_dice(inside * (inside >= 2), drawn * (drawn >= 2))


def drawn_measures(
    image: np.ndarray, found: np.ndarray | None, drawn: Drawn, sequence: str
) -> dict[str, Callable[[], float]]:
    """Functions by the measure's name: of an image, and of what the mixture ``found`` in it.

    Those of tissues that were not drawn are left out. The direction is that of the sequence: 1 is best of every AUC.
    """
    made: dict[str, Callable[[], float]] = {"label_inside": lambda: drawn.inside}
    if found is not None:
        made["label_dice"] = lambda: mixture_dice(found, drawn.tissues)
    known = set(TISSUES) - set(drawn.lacking)
    if known >= {"GM", "WM"}:
        made["label_cnr"] = lambda: tissue_contrast(image, drawn.of("GM"), drawn.of("WM"))
    solid, fluid = BRIGHTER.get(sequence, (None, None))
    if solid is not None and known >= set(solid):
        bright, dark = solid
        made["label_auc_wm"] = lambda: auc(image[drawn.of(bright)], image[drawn.of(dark)])
        made["label_contrast"] = lambda: median_contrast(image[drawn.of(bright)], image[drawn.of(dark)])
    if fluid is not None and known >= set(fluid):
        above, below = fluid
        made["label_auc_csf"] = lambda: auc(image[drawn.of(above)], image[drawn.of(below)])
    return made


def medians(scaled: np.ndarray, drawn: Drawn) -> Medians:
    """Medians of an image that is scaled by its own percentiles."""
    found = [
        float("nan") if tissue in drawn.lacking else float(np.median(scaled[drawn.of(tissue)])) for tissue in TISSUES
    ]
    return Medians(drawn.table, *found)


def median_change(a: Medians, b: Medians) -> float:
    """Mean over GM and WM of ``|median a − median b|`` as a share of the fluid-to-white range.

    Meant for two scans of one person at one site. Range 0 to ∞; lower is better; NaN where the tables differ or a
    tissue is lacking. Images are scaled by themselves. Cannot see: places; an image without any contrast; a person who
    changed in between.
    """
    reach = (a.reach + b.reach) / 2
    if a.table != b.table or not reach > 0:
        return float("nan")
    return (abs(a.gm - b.gm) + abs(a.wm - b.wm)) / 2 / reach


def spread_between_sites(values: np.ndarray, labels: np.ndarray) -> float:
    """How far a tissue's median lies apart between sites: mean over their pairs of ``|m_a − m_b| / range``.

    m is a site's mean over its images, the range the mean over sites of ``|WM − CSF|``; pairs are of sites with labels
    of one table. Range 0 to ∞; lower is better; NaN without a pair. Cannot see: places; people who differ between
    sites; labellings that differ under one table.

    Parameters
    ----------
    values:
        ``(n, 2)`` the image's median of the tissue, and its fluid-to-white range; both of the image scaled by itself.
    labels:
        ``(n,)`` as :func:`site_label` makes them.
    """
    means: dict[str, dict[str, np.ndarray]] = {}
    for label in np.unique(labels):
        table, _, site = str(label).partition(":")
        means.setdefault(table, {})[site] = values[labels == label].mean(axis=0)
    pairs = [pair for sites in means.values() for pair in combinations(sites.values(), 2)]
    if not pairs:
        return float("nan")
    apart = np.mean([abs(a[0] - b[0]) for a, b in pairs])
    reach = np.mean([site[1] for sites in means.values() if len(sites) > 1 for site in sites.values()])
    return float(apart / reach) if reach > 0 else float("nan")


def site_label(table: str, site: str) -> str:
    """A table and a site as one label of :func:`spread_between_sites`."""
    return f"{table}:{site}"
