"""Every metric by its name in `evaluation.json`: heading, which direction is better, what it says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

Direction = Literal["higher", "lower", "one", "neither"]

GROUPS = {
    "site": "Can the site be told?",
    "between": "Do sites agree?",
    "target": "Do scans look as if they came from the target site?",
    "truth": "Is it true?",
    "labels": "Do the tissues that others drew stand apart?",
    "kept": "Was the person kept?",
    "people": "Do people stay apart, and does biology show?",
}
"""Groups of metrics in the order of the report, as the questions they answer."""


class Metric(NamedTuple):
    """What a metric is.

    Attributes
    ----------
    better:
        The better direction; ``one``: the closer to 1.
    text:
        A sentence that says what it is.
    digits:
        Decimals shown.
    yardstick:
        What a loss is a share of where models are compared; None: of the value.
    """

    heading: str
    better: Direction
    group: str
    text: str
    digits: int = 3
    yardstick: float | None = None

    @property
    def sign(self) -> int:
        """1 where higher is better, −1 where lower is, 0 where neither; of what :meth:`judged` gives."""
        return {"higher": 1, "lower": -1, "one": -1, "neither": 0}[self.better]

    @property
    def arrow(self) -> str:
        """The better direction, to stand behind the heading."""
        return {"higher": "↑", "lower": "↓", "one": "→1", "neither": ""}[self.better]

    def judged(self, values: Any) -> Any:
        """What of a number or an array is compared: itself, or its distance to 1."""
        return abs(values - 1) if self.better == "one" else values

    def worth(self, value: float) -> float:
        """A number whose more is better; 0 where neither direction is."""
        return self.sign * self.judged(value)


_PROBE = "balanced accuracy of telling the site, cross-validated by subject; chance is one over the sites"
_OVER = "between one person's images of two sites"
_OWN_SCAN = "the same person's own scan at the target site"
_AUC_RANGE = 0.1
"""Real scans lie between about .87 and .99: a share of the value would let pass what makes a good scan a poor one."""

METRICS: dict[str, Metric] = {
    "site_probe": Metric("site probe", "lower", "site", f"Linear probe trained anew on the method's output: {_PROBE}."),
    "site_probe_cnn": Metric("site CNN", "lower", "site", f"Convolutional probe trained anew: {_PROBE}."),
    "site_probe_frozen": Metric(
        "frozen probe", "lower", "site", f"Linear probe trained on raw scans: {_PROBE}. Easily fooled: read the other."
    ),
    "site_probe_cnn_frozen": Metric(
        "frozen CNN", "lower", "site", f"Convolutional probe trained on raw scans: {_PROBE}. Easily fooled."
    ),
    "site_probe_pattern": Metric(
        "site pattern",
        "lower",
        "site",
        f"Matched filter for a fixed pattern of the site's images, trained anew: {_PROBE}.",
    ),
    "site_probe_style": Metric(
        "style probe", "lower", "site", f"Linear probe on style vectors, trained anew: {_PROBE}."
    ),
    "site_silhouette_style": Metric("style silhouette", "lower", "site", "How tightly style vectors gather by site."),
    "site_silhouette": Metric("site silhouette", "lower", "site", "How tightly features gather by site, -1 to 1."),
    "site_adjusted_rand": Metric("site ARI", "lower", "site", "Agreement of k-means clusters with sites, 0 by chance."),
    "site_lisi": Metric("site mixing", "higher", "site", "LISI of sites around an image, 0 (one site) to 1 (all)."),
    "site_kbet": Metric("kBET rejected", "lower", "site", "Share of neighbourhoods with an unusual mix of sites."),
    "psnr": Metric("PSNR dB", "higher", "between", f"PSNR {_OVER}. Blur raises it.", 1),
    "ssim": Metric("SSIM", "higher", "between", f"SSIM {_OVER}. Blur raises it."),
    "mae": Metric("MAE", "lower", "between", f"Mean absolute difference {_OVER}, each scaled by its percentiles."),
    "w1": Metric("W1", "lower", "between", "Wasserstein-1 distance of brain intensities between sites."),
    "w1_csf": Metric("W1 CSF", "lower", "between", "The same within fluid."),
    "w1_gm": Metric("W1 GM", "lower", "between", "The same within grey matter."),
    "w1_wm": Metric("W1 WM", "lower", "between", "The same within white matter."),
    "tissue_dice": Metric("tissue Dice", "higher", "between", f"Overlap of segmented tissues {_OVER}."),
    "tissue_volume_error": Metric(
        "volume error", "lower", "between", f"Relative difference of GM and WM volume {_OVER}."
    ),
    "unet_dice": Metric(
        "U-Net Dice", "higher", "between", "Tissue overlap of a U-Net that learned at one site, at the others."
    ),
    "unet_volume_error": Metric(
        "U-Net volume error", "lower", "between", "The same network's error of GM and WM volume."
    ),
    "retest_distance": Metric("retest distance", "lower", "between", "Mean difference of two scans of one scanner."),
    "psnr_n4": Metric("PSNR dB N4", "higher", "target", f"PSNR to {_OWN_SCAN} after N4. Blur raises it.", 1),
    "ssim_n4": Metric("SSIM N4", "higher", "target", f"SSIM to {_OWN_SCAN} after N4. Blur raises it."),
    "w1_n4": Metric("W1 N4", "lower", "target", "W1 to the target site's other people, whose scans went through N4."),
    "w1_of_raw": Metric("W1 of raw", "lower", "target", "W1 as a share of the raw scans' W1.", 2),
    "w1_n4_of_raw": Metric("W1 N4 of raw", "lower", "target", "The same of W1 N4.", 2),
    "style_distance": Metric(
        "style distance", "lower", "target", "1 - cosine of the style vector and the target site's mean style vector."
    ),
    "identity": Metric(
        "change at target",
        "lower",
        "target",
        "Mean change of the target site's own scans, which are as they should be.",
    ),
    "truth_nrmse": Metric(
        "nRMSE to truth", "lower", "truth", "Error to the noise-free truth after one monotone map for all images."
    ),
    "truth_nrmse_direct": Metric(
        "nRMSE without map", "lower", "truth", "Error to the noise-free truth at the target: wrong contrast counts."
    ),
    "psnr_truth": Metric("PSNR to truth", "higher", "truth", "PSNR to the noise-free truth.", 1),
    "ssim_truth": Metric("SSIM to truth", "higher", "truth", "SSIM to the noise-free truth."),
    "dice_truth": Metric("Dice to truth", "higher", "truth", "Overlap of segmented with true tissues."),
    "volume_error_truth": Metric("volume error to truth", "lower", "truth", "Relative error of GM and WM volume."),
    "label_auc_wm": Metric(
        "AUC WM/GM",
        "higher",
        "labels",
        "Chance that a voxel labelled white is brighter than one labelled grey (darker, where the sequence has it so).",
        yardstick=_AUC_RANGE,
    ),
    "label_auc_csf": Metric(
        "AUC GM/CSF", "higher", "labels", "The same of grey matter over fluid.", yardstick=_AUC_RANGE
    ),
    "label_contrast": Metric(
        "contrast WM/GM",
        "higher",
        "labels",
        "(WM - GM) / WM of the labels' medians; GM first where grey is the brighter. "
        "None of images with values below 0.",
    ),
    "label_cnr": Metric(
        "CNR WM/GM", "higher", "labels", "|WM - GM| over the pooled deviation in the labels. Denoising raises it.", 2
    ),
    "label_dice": Metric(
        "mixture Dice",
        "higher",
        "labels",
        "Overlap of a mixture of three classes with the labels of GM and WM. It jumps with where the classes fall.",
    ),
    "label_spread_gm": Metric(
        "GM between sites",
        "lower",
        "labels",
        "Difference of the labelled grey's median between sites, as a share of the range from fluid to white.",
        4,
    ),
    "label_spread_wm": Metric("WM between sites", "lower", "labels", "The same of white matter.", 4),
    "label_retest": Metric(
        "medians retest",
        "lower",
        "labels",
        "Difference of the labelled GM's and WM's medians between two scans of a person at one site, as such a share.",
        4,
    ),
    "label_inside": Metric(
        "labels in mask",
        "neither",
        "labels",
        "Part of the labelled GM and WM inside the brain mask: all that is judged.",
    ),
    "gradient_correlation": Metric("gradient corr.", "higher", "kept", "Correlation of edges with the scan's own."),
    "structural_dissimilarity": Metric(
        "struct. diss.", "lower", "kept", "Structure that differs from the scan's, 0 to 1."
    ),
    "hallucination": Metric(
        "hallucination", "lower", "kept", "Share of the output that no local map of the scan explains."
    ),
    "idempotence": Metric("change if repeated", "lower", "kept", "Mean change when the output is harmonized again."),
    "lesion_preservation": Metric(
        "lesion contrast kept", "one", "kept", "Lesion contrast over the scan's; 1 is best.", yardstick=1.0
    ),
    "contrast_kept": Metric(
        "GM-WM contrast kept",
        "neither",
        "kept",
        "Contrast over the scan's, where both segmentations agree. Denoising and bias correction raise it.",
        2,
    ),
    "dice_raw": Metric(
        "Dice to raw",
        "neither",
        "kept",
        "Agreement with the raw scan's own segmentation: no accuracy, raw may be wrong.",
    ),
    "volume_change_raw": Metric(
        "volume change", "neither", "kept", "Change of GM and WM volume from the raw scan's own segmentation."
    ),
    "tissue_contrast": Metric(
        "GM-WM contrast", "higher", "kept", "Contrast of true GM and WM. Denoising raises it.", 2
    ),
    "noise": Metric("noise", "neither", "kept", "Noise as a share of the brain's 1st to 99th percentile."),
    "smoothness_mm": Metric("smoothness mm", "neither", "kept", "Width of the image's autocorrelation in mm: blur.", 2),
    "subject_nearest": Metric(
        "person found", "higher", "people", "How often the nearest image of another site is the same person's."
    ),
    "subject_silhouette": Metric("person silhouette", "higher", "people", "How tightly features gather by person."),
    "subject_adjusted_rand": Metric(
        "person ARI", "higher", "people", "Agreement of k-means clusters with persons who have several images."
    ),
    "subject_lisi": Metric("person mixing", "lower", "people", "LISI of persons around an image, 0 (one) to 1 (all)."),
    "subject_kbet": Metric(
        "person kBET",
        "higher",
        "people",
        "Share of neighbourhoods with an unusual mix of persons; coarse, as images a person are few.",
    ),
    "age_mae": Metric("age MAE", "lower", "people", "Error of brain age in years, cross-validated by subject.", 1),
    "age_mae_across_sites": Metric("age MAE across", "lower", "people", "The same, the tested site left out.", 1),
    "age_association": Metric(
        "GM with age", "neither", "people", "Correlation of grey matter's share with age in sites."
    ),
    "sex_association": Metric(
        "GM with sex", "neither", "people", "Correlation of grey matter's share with sex in sites."
    ),
    "gm_share": Metric("GM share", "neither", "people", "Part of the brain segmented as grey matter."),
}
"""In the order of the report. Lower or higher is better for harmonizing; nothing of it replaces looking at images."""

OURS = "ours"
RAW = "raw"
AGAIN = "_twice"
"""Ending of the name of an archive that holds the outputs of another one, harmonized once more.

It is no method: it gives the other archive its idempotence.
"""
BEST_KNOWN = "n4_histogram_matching"
"""The simple method that is hardest to beat; pictures show it and the most expensive metrics include it."""

TRUTH = "truth"
"""What the metrics to a target are worth: the noise-free truth there, taken for an output.

It differs from the scan at the target by noise and bias field alone.
"""
REFERENCE = "reference"
"""In pictures, the same person's own scan at the target site."""

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
"""Names of the built-in methods for people, in the order of tables; :func:`ordered` says where archives stand."""

_NOT_SIMPLE = (RAW, "combat", "covbat", TRUTH, REFERENCE, OURS)
SIMPLE = tuple(method for method in _METHOD_NAMES if method not in _NOT_SIMPLE)
"""The simple methods that make images: the alternatives to ours."""

_VALUE_AT_CHANCE = {"site_silhouette": 0.0, "site_silhouette_style": 0.0, "site_adjusted_rand": 0.0, "site_kbet": 0.05}


def shown_name(method: str) -> str:
    """A method's name for people."""
    return _METHOD_NAMES.get(method, method)


def ordered(methods: Iterable[str]) -> list[str]:
    """Built-in methods, then the archives by name, ours last."""
    methods = set(methods)
    built_in = [method for method in _METHOD_NAMES if method in methods and method != OURS]
    archives = sorted(methods - _METHOD_NAMES.keys())
    ours = [OURS] if OURS in methods else []
    return built_in + archives + ours


def floor_of(metric: str, sites: int) -> float:
    """The value at chance, below which no value is better than chance: comparisons raise lower ones to it. Else −∞.

    One over the sites for the probes, 0 for the silhouettes and the adjusted Rand index, the level of its tests for
    kBET.
    """
    if metric.startswith("site_probe"):
        return 1 / max(sites, 1)
    return _VALUE_AT_CHANCE.get(metric, -math.inf)


def text_of(metric: str, value: float) -> str:
    """A value with the metric's decimals."""
    return f"{value:.{METRICS[metric].digits}f}"
