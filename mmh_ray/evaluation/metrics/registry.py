"""Lists every metric by its name in `evaluation.json`, with heading, better direction and description."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

Direction = Literal["higher", "lower", "one", "neither"]

GROUPS = {
    "site": "Can the site be recognised?",
    "between": "Do sites agree?",
    "target": "Do scans look like scans of the target site?",
    "truth": "Is the image close to the truth?",
    "labels": "Are labelled tissues distinct?",
    "kept": "Is the person's anatomy kept?",
    "people": "Do persons stay distinct, and does biology remain visible?",
}
"""Groups of metrics in the order of the report, with the question that each answers."""


class Metric(NamedTuple):
    """Description of a metric.

    Attributes
    ----------
    better:
        The better direction; ``one``: the closer to 1.
    text:
        A sentence that explains it.
    digits:
        Decimals shown.
    yardstick:
        The range that a loss is a share of when models are compared; None: the value itself.
    """

    heading: str
    better: Direction
    group: str
    text: str
    digits: int = 3
    yardstick: float | None = None

    @property
    def sign(self) -> int:
        """Direction in which :meth:`judged` improves: 1 higher, −1 lower, 0 neither."""
        return {"higher": 1, "lower": -1, "one": -1, "neither": 0}[self.better]

    @property
    def arrow(self) -> str:
        """The better direction as a sign after the heading."""
        return {"higher": "↑", "lower": "↓", "one": "→1", "neither": ""}[self.better]

    def judged(self, values: Any) -> Any:
        """The values that are compared: a number or an array itself, or its distance to 1."""
        return abs(values - 1) if self.better == "one" else values

    def worth(self, value: float) -> float:
        """The value, signed so that higher is better; 0 if neither direction is better."""
        return self.sign * self.judged(value)


_PROBE = "balanced accuracy of predicting the site, cross-validated by subject; chance is 1 / number of sites"
_OVER = "between one person's images from two sites"
_OWN_SCAN = "the same person's scan at the target site"
_AUC_RANGE = 0.1
"""AUCs of real scans range from about .87 to .99, so a share of the value would allow too large a loss."""

METRICS: dict[str, Metric] = {
    "site_probe": Metric("site probe", "lower", "site", f"Linear probe trained on the method's output: {_PROBE}."),
    "site_probe_cnn": Metric("site CNN", "lower", "site", f"CNN trained on the method's output: {_PROBE}."),
    "site_probe_frozen": Metric("frozen probe", "lower", "site", "Site probe trained on raw scans; easily fooled."),
    "site_probe_cnn_frozen": Metric("frozen CNN", "lower", "site", "Site CNN trained on raw scans; easily fooled."),
    "site_probe_pattern": Metric(
        "site pattern", "lower", "site", f"Matched filter for a pattern shared by a site's images: {_PROBE}."
    ),
    "site_probe_style": Metric("style probe", "lower", "site", f"Linear probe on style vectors: {_PROBE}."),
    "site_silhouette_style": Metric("style silhouette", "lower", "site", "How tightly style vectors cluster by site."),
    "site_silhouette": Metric("site silhouette", "lower", "site", "How tightly features cluster by site, -1 to 1."),
    "site_adjusted_rand": Metric("site ARI", "lower", "site", "Agreement of k-means clusters with sites, 0 by chance."),
    "site_lisi": Metric("site mixing", "higher", "site", "LISI of sites around an image, 0 (one site) to 1 (all)."),
    "site_kbet": Metric("kBET rejected", "lower", "site", "Share of neighbourhoods with an unusual mix of sites."),
    "psnr": Metric("PSNR dB", "higher", "between", f"PSNR {_OVER}. Blur raises it.", 1),
    "ssim": Metric("SSIM", "higher", "between", f"SSIM {_OVER}. Blur raises it."),
    "mae": Metric("MAE", "lower", "between", f"Mean absolute difference {_OVER}, each scaled by its percentiles."),
    "w1": Metric("W1", "lower", "between", "Wasserstein-1 distance of brain intensities between sites."),
    "w1_csf": Metric("W1 CSF", "lower", "between", "W1 within fluid."),
    "w1_gm": Metric("W1 GM", "lower", "between", "W1 within grey matter."),
    "w1_wm": Metric("W1 WM", "lower", "between", "W1 within white matter."),
    "tissue_dice": Metric("tissue Dice", "higher", "between", f"Overlap of segmented tissues {_OVER}."),
    "tissue_volume_error": Metric("volume error", "lower", "between", f"Relative difference of volumes {_OVER}."),
    "unet_dice": Metric("U-Net Dice", "higher", "between", "Dice of a U-Net trained at one site, tested at others."),
    "unet_volume_error": Metric("U-Net volume error", "lower", "between", "Error of the U-Net's GM and WM volume."),
    "retest_distance": Metric("retest distance", "lower", "between", "Mean difference of two scans on one scanner."),
    "psnr_n4": Metric("PSNR dB N4", "higher", "target", f"PSNR to {_OWN_SCAN} after N4. Blur raises it.", 1),
    "ssim_n4": Metric("SSIM N4", "higher", "target", f"SSIM to {_OWN_SCAN} after N4. Blur raises it."),
    "w1_n4": Metric("W1 N4", "lower", "target", "W1 to scans of the target site's other people after N4."),
    "w1_of_raw": Metric("W1 of raw", "lower", "target", "W1 as a share of the raw scans' W1.", 2),
    "w1_n4_of_raw": Metric("W1 N4 of raw", "lower", "target", "W1 N4 as a share of the raw scans' W1 N4.", 2),
    "style_distance": Metric("style distance", "lower", "target", "1 - cosine of style vector and the target's mean."),
    "identity": Metric("change at target", "lower", "target", "Mean change of the target's scans, which need none."),
    "truth_nrmse": Metric(
        "nRMSE to truth", "lower", "truth", "Error to the noise-free truth after one monotone map for all images."
    ),
    "truth_nrmse_direct": Metric(
        "nRMSE without map", "lower", "truth", "Error to the noise-free truth at the target, including wrong contrast."
    ),
    "psnr_truth": Metric("PSNR to truth", "higher", "truth", "PSNR to the noise-free truth.", 1),
    "ssim_truth": Metric("SSIM to truth", "higher", "truth", "SSIM to the noise-free truth."),
    "dice_truth": Metric("Dice to truth", "higher", "truth", "Overlap of segmented with true tissues."),
    "volume_error_truth": Metric("volume error to truth", "lower", "truth", "Relative error of GM and WM volume."),
    "label_auc_wm": Metric(
        "AUC WM/GM",
        "higher",
        "labels",
        "Probability that labelled white matter is brighter than grey matter (darker in sequences with bright grey).",
        yardstick=_AUC_RANGE,
    ),
    "label_auc_csf": Metric("AUC GM/CSF", "higher", "labels", "AUC of grey matter and fluid.", yardstick=_AUC_RANGE),
    "label_contrast": Metric(
        "contrast WM/GM",
        "higher",
        "labels",
        "(WM - GM) / WM of the labels' medians, or (GM - WM) / GM if grey is brighter. None for values below 0.",
    ),
    "label_cnr": Metric(
        "CNR WM/GM", "higher", "labels", "|WM - GM| / pooled sd of the labelled tissues. Denoising raises it.", 2
    ),
    "label_dice": Metric(
        "mixture Dice",
        "higher",
        "labels",
        "Overlap of segmented and labelled GM and WM. It is sensitive to the segmentation's class borders.",
    ),
    "label_spread_gm": Metric(
        "GM between sites",
        "lower",
        "labels",
        "Difference of labelled grey matter's median between sites, as a share of the fluid-to-white range.",
        4,
    ),
    "label_spread_wm": Metric("WM between sites", "lower", "labels", "As GM between sites, for white matter.", 4),
    "label_retest": Metric(
        "medians retest",
        "lower",
        "labels",
        "Change of the labelled tissues' medians in a person's scans at one site, in the same unit.",
        4,
    ),
    "label_inside": Metric("labels in mask", "neither", "labels", "Share of labelled GM and WM in the brain mask."),
    "gradient_correlation": Metric("gradient corr.", "higher", "kept", "Correlation of edges with the scan's own."),
    "structural_dissimilarity": Metric("struct. diss.", "lower", "kept", "Change of the scan's structure, 0 to 1."),
    "hallucination": Metric(
        "hallucination", "lower", "kept", "Share of the output that no local map of the scan explains."
    ),
    "idempotence": Metric("change if repeated", "lower", "kept", "Mean change when the output is harmonized again."),
    "lesion_preservation": Metric(
        "lesion contrast kept", "one", "kept", "Lesion contrast divided by the scan's; 1 is best.", yardstick=1.0
    ),
    "contrast_kept": Metric(
        "GM-WM contrast kept",
        "neither",
        "kept",
        "Contrast divided by the scan's, where both segmentations agree. Denoising and bias correction raise it.",
        2,
    ),
    "dice_raw": Metric("Dice to raw", "neither", "kept", "Agreement with the raw scan's segmentation, not accuracy."),
    "volume_change_raw": Metric("volume change", "neither", "kept", "Change of GM and WM volume compared with raw."),
    "tissue_contrast": Metric("GM-WM contrast", "higher", "kept", "True GM-WM contrast. Denoising raises it.", 2),
    "noise": Metric("noise", "neither", "kept", "Noise as a share of the brain's 1st to 99th percentile."),
    "smoothness_mm": Metric("smoothness mm", "neither", "kept", "Width of the image's autocorrelation in mm: blur.", 2),
    "subject_nearest": Metric(
        "person found", "higher", "people", "How often the nearest image from another site shows the same person."
    ),
    "subject_silhouette": Metric("person silhouette", "higher", "people", "How tightly features cluster by person."),
    "subject_adjusted_rand": Metric("person ARI", "higher", "people", "Agreement of k-means clusters with persons."),
    "subject_lisi": Metric("person mixing", "lower", "people", "LISI of persons around an image, 0 (one) to 1 (all)."),
    "subject_kbet": Metric(
        "person kBET", "higher", "people", "Unusual mixes of persons around an image; imprecise with few images each."
    ),
    "age_mae": Metric("age MAE", "lower", "people", "Error of brain age in years, cross-validated by subject.", 1),
    "age_mae_across_sites": Metric("age MAE across", "lower", "people", "Age MAE with the tested site left out.", 1),
    "age_association": Metric("GM with age", "neither", "people", "Correlation of GM share and age within sites."),
    "sex_association": Metric("GM with sex", "neither", "people", "Correlation of GM share and sex within sites."),
    "gm_share": Metric("GM share", "neither", "people", "Share of the brain segmented as grey matter."),
}
"""In the order of the report. No metric replaces looking at the images."""

OURS = "ours"
RAW = "raw"
AGAIN = "_twice"
"""Suffix of the name of an archive that holds the outputs of another archive, harmonized again.

Such an archive is not a method; it is used to measure the idempotence of the other one.
"""
BEST_KNOWN = "n4_histogram_matching"
"""The simple method that is hardest to beat; it is included in pictures and in the most expensive metrics."""

TRUTH = "truth"
"""The noise-free truth at the target, scored like an output to show which values the metrics can reach.

It differs from the scan at the target only by noise and bias field.
"""
REFERENCE = "reference"
"""In pictures, the same person's scan at the target site."""

_METHOD_NAMES = {
    RAW: "raw",
    "zscore": "z-score",
    "whitestripe": "WhiteStripe",
    "nyul": "Nyúl",
    "histogram_matching": "histogram matching",
    "n4": "N4",
    "n4_histogram_matching": "N4 + histogram matching",
    "n4_histogram_matching_nlm": "N4 + HM + NLM",
    "combat": "ComBat (features)",
    "covbat": "CovBat (features)",
    TRUTH: "noise-free truth",
    REFERENCE: "own scan at target",
    OURS: "harmonized (ours)",
}
"""Display names of the built-in methods, in the order of tables; :func:`ordered` adds the archives."""

_NOT_SIMPLE = (RAW, "combat", "covbat", TRUTH, REFERENCE, OURS)
SIMPLE = tuple(method for method in _METHOD_NAMES if method not in _NOT_SIMPLE)
"""The simple methods that make images, which are the alternatives to ours."""

_VALUE_AT_CHANCE = {"site_silhouette": 0.0, "site_silhouette_style": 0.0, "site_adjusted_rand": 0.0, "site_kbet": 0.05}


def shown_name(method: str) -> str:
    """A method's display name."""
    return _METHOD_NAMES.get(method, method)


def ordered(methods: Iterable[str]) -> list[str]:
    """Sort methods: built-in ones, then archives by name, then ours."""
    methods = set(methods)
    built_in = [method for method in _METHOD_NAMES if method in methods and method != OURS]
    archives = sorted(methods - _METHOD_NAMES.keys())
    ours = [OURS] if OURS in methods else []
    return built_in + archives + ours


def floor_of(metric: str, sites: int) -> float:
    """The value at chance, to which comparisons raise lower values; −∞ for a metric without such a value.

    1 / sites for the probes, 0 for the silhouettes and the adjusted Rand index, the significance level for kBET.
    """
    if metric.startswith("site_probe"):
        return 1 / max(sites, 1)
    return _VALUE_AT_CHANCE.get(metric, -math.inf)


def text_of(metric: str, value: float) -> str:
    """Format a value with the metric's decimals."""
    return f"{value:.{METRICS[metric].digits}f}"
