"""The measures of one image and of a pair of images under one method, and how long each takes."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.inputs.scans import Row, Scan, Settings, Truth, on_one_grid, read_lesion, read_output
from mmh_ray.evaluation.metrics import preservation
from mmh_ray.evaluation.metrics.agreement import (
    Joint,
    gradient_correlation,
    psnr,
    scale_by_percentiles,
    ssim,
    tissue_contrast,
    truth_bins,
    w1,
)
from mmh_ray.evaluation.metrics.features import fine_detail, image_features, probe_slices
from mmh_ray.evaluation.metrics.label_metrics import LABEL_MEASURES, Medians, drawn_measures, median_change, medians
from mmh_ray.evaluation.metrics.registry import AGAIN, RAW
from mmh_ray.evaluation.metrics.segmentation import (
    TISSUES,
    mean_dice,
    mean_volume_error,
    segment_tissues,
    tissue_labels,
)

if TYPE_CHECKING:
    from mmh_ray.evaluation.probes.segmentation_network import TissueSlices

FACTS = ("image_id", "subject", "site", "sequence", "age", "sex")
"""What a row of the manifest says of an image and its measures' rows repeat."""

_HISTOGRAM_POINTS = 256


@dataclass(frozen=True, eq=False)
class Output:
    """What a method made of a scan: the image, the same scaled by its percentiles, the tissues that a mixture finds in it.

    ``medians`` are those of the scaled image in the tissues that others drew; None where they drew none.
    """

    method: str
    scan: Scan
    image: np.ndarray
    scaled: np.ndarray
    labels: np.ndarray | None
    medians: Medians | None = None

    def share(self, tissue: str) -> float | None:
        """Part of the brain that is this tissue."""
        if self.labels is None:
            return None
        return float(np.mean(self.labels[self.scan.mask] == TISSUES.index(tissue) + 1))


class Detail(NamedTuple):
    """The shape of an image's grid, and :func:`mmh_ray.evaluation.metrics.features.fine_detail` of its middle."""

    grid: tuple[int, ...]
    values: np.ndarray


class Bulk(NamedTuple):
    """What only measures of a whole cohort need of an image; it stays away from the driver.

    256 quantiles of the scaled brain, the same of every tissue, the binned truth, named features, slices for the CNN; features of the part
    of the grid that is brain in everybody (None where there is no such part), fine detail of the grid's middle, style vector, slices with
    tissues for the U-Net, medians in the tissues that others drew.
    """

    quantiles: np.ndarray
    tissues: Mapping[str, np.ndarray]
    joint: Joint | None
    features: Mapping[str, float]
    slices: np.ndarray | None
    person: Mapping[str, float] | None
    detail: Detail
    style: np.ndarray | None = None
    tissue_slices: TissueSlices | None = None
    medians: Medians | None = None


@dataclass
class Clock:
    """Processor seconds and calls by measure; what cannot be had is None and leaves a note with its owner; how trainings ended."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)
    notes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, name: str, whose: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; None where it raises DataError or gives a number that is not finite."""
        start = time.process_time()
        try:
            found = function(*arguments)
        except DataError as error:
            self.notes[f"no {name}: {error}"].append(whose)
            return None
        finally:
            self.seconds[name] += time.process_time() - start
            self.calls[name] += 1
        return None if isinstance(found, float) and not math.isfinite(found) else found

    def add(self, other: Clock) -> None:
        """Take in another's seconds and notes."""
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds
        self.calls.update(other.calls)
        self.trainings.update(other.trainings)
        for text, own in other.notes.items():
            self.notes[text] += own

    def said(self) -> list[str]:
        """A sentence per note."""
        return [
            f"{text} ({own[0]}{f' and {len(own) - 1} more' if own[1:] else ''})" for text, own in self.notes.items()
        ]


def make_output(method: str, scan: Scan, image: np.ndarray, clock: Clock) -> Output:
    """Scale an image by nothing but itself and segment it."""
    sequence, image_id = scan.row["sequence"], scan.row["image_id"]
    scaled = scale_by_percentiles(image, scan.mask)
    labels = clock.run("segmentation", image_id, lambda: tissue_labels(segment_tissues(scaled, scan.mask, sequence)))
    found = None if scan.drawn is None else clock.run("label_medians", image_id, medians, scaled, scan.drawn)
    return Output(method, scan, image, scaled, labels, found)


def _of_truth(output: Output, truth: Truth) -> dict[str, Callable[[], float | None]]:
    mask, tissues = output.scan.mask, truth.tissues
    target = scale_by_percentiles(truth.noisefree, mask)
    made: dict[str, Callable[[], float | None]] = {
        "psnr_truth": lambda: psnr(output.scaled, target, mask),
        "ssim_truth": lambda: ssim(output.scaled, target, mask),
    }
    if tissues.keys() >= {"GM", "WM"}:
        grey, white = tissues["GM"] * mask, tissues["WM"] * mask
        made["tissue_contrast"] = lambda: tissue_contrast(output.image, grey, white)
    if truth.labels is not None and output.labels is not None:
        own, known = output.labels, truth.labels * mask
        made["dice_truth"] = lambda: mean_dice(own, known)
        made["volume_error_truth"] = lambda: mean_volume_error(own, known)
    return made


def _of_drawn(output: Output) -> dict[str, Callable[[], float]]:
    """Whether the tissues that others drew stand apart."""
    drawn = output.scan.drawn
    if drawn is None:
        return {}
    return drawn_measures(output.image, output.labels, drawn, output.scan.row["sequence"])


def _of_lesion(output: Output, truth: Truth | None) -> dict[str, Callable[[], float | None]]:
    """Of the lesion that the truth knows, else of the one that lies in the archive's derivatives."""
    known, drawn = None if truth is None else truth.lesion, output.scan.row.get("lesion_uri") or ""
    if known is None and not drawn:
        return {}

    def measured() -> float | None:
        lesion = (known if known is not None else read_lesion(drawn, output.scan)) & output.scan.mask
        image, source = output.image, output.scan.volume.data
        return preservation.lesion_preservation(image, source, lesion, output.scan.mask) if lesion.any() else None

    return {"lesion_preservation": measured}


def _of_reference(output: Output, reference: np.ndarray | None) -> dict[str, Callable[[], float | None]]:
    """Agreement with the tissues that the same segmenter finds in the raw scan: no accuracy, but to be had of any scan."""
    if reference is None or output.labels is None:
        return {}
    own = output.labels
    made: dict[str, Callable[[], float | None]] = {
        "contrast_kept": lambda: _contrast_kept(output.image, output.scan.volume.data, own * (own == reference))
    }
    if output.method != RAW:
        made["dice_raw"] = lambda: mean_dice(own, reference)
        made["volume_change_raw"] = lambda: mean_volume_error(own, reference)
    return made


def _contrast_kept(image: np.ndarray, source: np.ndarray, agreed: np.ndarray) -> float | None:
    """Grey-white contrast over the scan's where both segmentations agree: whose labels were taken would decide, each image's favour it."""
    grey, white = agreed == TISSUES.index("GM") + 1, agreed == TISSUES.index("WM") + 1
    before = tissue_contrast(source, grey, white)
    return tissue_contrast(image, grey, white) / before if before > 0 else None


def _of_source(output: Output) -> dict[str, Callable[[], float | None]]:
    image, source, mask = output.image, output.scan.volume.data, output.scan.mask
    made: dict[str, Callable[[], float | None]] = {
        "gradient_correlation": lambda: gradient_correlation(image, source, mask),
        "structural_dissimilarity": lambda: preservation.structural_dissimilarity(image, source, mask),
        "hallucination": lambda: preservation.hallucination(image, source, mask),
        "noise": lambda: preservation.noise_estimate(image, mask),
        "smoothness_mm": lambda: preservation.smoothness_mm(image, mask, output.scan.volume.spacing),
        "gm_share": lambda: output.share("GM"),
    }
    if again := output.scan.row["outputs"].get(output.method + AGAIN):
        made["idempotence"] = lambda: preservation.idempotence(image, read_output(again, output.scan), mask)
    return made


IMAGE_MEASURES = (
    *("psnr_truth", "ssim_truth", "gradient_correlation", "tissue_contrast", "dice_truth", "volume_error_truth"),
    *("lesion_preservation", "structural_dissimilarity", "hallucination", "noise", "smoothness_mm", "gm_share"),
    *("idempotence", "contrast_kept", "dice_raw", "volume_change_raw"),
    *LABEL_MEASURES,
)
"""What an image has of itself, its source, its truth and the tissues that others drew."""

PAIR_MEASURES = ("psnr", "ssim", "w1", "mae", "w1_csf", "w1_gm", "w1_wm", "tissue_dice", "tissue_volume_error")
"""What two images of one person from two sites have."""

RETEST, LABEL_RETEST = "retest_distance", "label_retest"
"""What two images of one person from one site have."""


def measure_image(output: Output, truth: Truth | None, clock: Clock, reference: np.ndarray | None = None) -> Row:
    """A row with every one of :data:`IMAGE_MEASURES`, None where it cannot be had; ``reference`` holds the raw scan's labels."""
    row: Row = {name: output.scan.row[name] for name in FACTS}
    row |= {"method": output.method} | dict.fromkeys(IMAGE_MEASURES)
    functions = _of_source(output) | ({} if truth is None else _of_truth(output, truth))
    functions |= _of_lesion(output, truth) | _of_reference(output, reference) | _of_drawn(output)
    return row | {name: clock.run(name, row["image_id"], function) for name, function in functions.items()}


def measure_pair(a: Output, b: Output, clock: Clock) -> Row:
    """A row with :data:`PAIR_MEASURES` of two sites, or :data:`RETEST` and :data:`LABEL_RETEST` of one; None where grids differ."""
    first, second = (output.scan.row for output in (a, b))
    names = [first["image_id"], second["image_id"]]
    row: Row = {"method": a.method, "images": names, "subject": first["subject"], "sequence": first["sequence"]}
    row |= dict.fromkeys((*PAIR_MEASURES, RETEST, LABEL_RETEST))
    functions: dict[str, Callable[[], float]] = {}
    both = a.scan.mask & b.scan.mask if on_one_grid(a.scan, b.scan) else None
    if both is None or not both.any():
        both = None
        text = "different grids: no PSNR, SSIM, MAE or Dice between two images of one person"
        clock.notes[text].append(f"{names[0]} and {names[1]}")
    if first["site"] == second["site"]:
        functions = {} if both is None else {RETEST: lambda: preservation.distance(a.image, b.image, both)}
        before, after = a.medians, b.medians
        if before is not None and after is not None:
            functions[LABEL_RETEST] = lambda: median_change(before, after)
    else:
        functions = _between_sites(a, b, both)
    return row | {name: clock.run(name, names[0], function) for name, function in functions.items()}


def _between_sites(a: Output, b: Output, both: np.ndarray | None) -> dict[str, Callable[[], float]]:
    one, other = a.scaled, b.scaled
    made: dict[str, Callable[[], float]] = {"w1": lambda: w1(one[a.scan.mask], other[b.scan.mask])}
    if both is not None:
        made["psnr"] = lambda: psnr(one, other, both)
        made["ssim"] = lambda: ssim(one, other, both)
        made["mae"] = lambda: preservation.mae(one, other, both)
    first, second = a.labels, b.labels
    if first is not None and second is not None:
        for i, tissue in enumerate(TISSUES):
            inside, elsewhere = one[first == i + 1], other[second == i + 1]
            if inside.size and elsewhere.size:
                made[f"w1_{tissue.lower()}"] = lambda x=inside, y=elsewhere: w1(x, y)  # type: ignore[misc]
        if both is not None:
            made["tissue_volume_error"] = lambda: mean_volume_error(first, second)
            made["tissue_dice"] = lambda: mean_dice(first * both, second * both)
    return made


def bulk_of(
    output: Output, truth: Truth | None, settings: Settings, clock: Clock, reference: np.ndarray | None = None
) -> Bulk:
    """What the measures of the cohort need of this image; ``reference`` as of :func:`measure_image`.

    The truth error compares image and truth each scaled by its own percentiles, whatever the method: the unit of an MR image is no one's
    merit, and a method that hands on the scanner's gain is not charged for it.
    """
    scan, name = output.scan, output.scan.row["image_id"]
    middles = (np.arange(_HISTOGRAM_POINTS) + 0.5) / _HISTOGRAM_POINTS
    labels = output.labels
    tissues: Mapping[str, np.ndarray] = {}
    if labels is not None:
        tissues = (
            clock.run("tissue_quantiles", name, lambda: preservation.tissue_quantiles(output.scaled, labels)) or {}
        )
    style = settings.style if output.method in settings.slices else None
    common = settings.common.get((scan.row["sequence"], scan.mask.shape))
    return Bulk(
        np.quantile(output.scaled[scan.mask], middles).astype(np.float32),
        tissues,
        None if truth is None else truth_bins(output.scaled, truth.noisefree, scan.mask),
        clock.run("features", name, lambda: image_features(output.image, scan.mask, scan.volume.spacing)) or {},
        clock.run("slices", name, lambda: probe_slices(output.image, scan.mask, scan.volume.affine))
        if output.method in settings.slices
        else None,
        None
        if common is None
        else clock.run("person_features", name, lambda: image_features(output.image, common, scan.volume.spacing)),
        Detail(scan.mask.shape, clock.run("fine_detail", name, lambda: fine_detail(output.image, scan.mask))),
        None
        if style is None
        else clock.run("style_vector", name, lambda: style(output.scaled, scan.mask, scan.volume.affine)),
        _tissue_slices(output, truth, reference, clock) if output.method in settings.slices else None,
        output.medians,
    )


def _tissue_slices(
    output: Output, truth: Truth | None, reference: np.ndarray | None, clock: Clock
) -> TissueSlices | None:
    """With the true tissues, else those that are found in the raw scan: the same for every method."""
    from mmh_ray.evaluation.probes.segmentation_network import tissue_slices

    scan, labels = output.scan, reference if truth is None or truth.labels is None else truth.labels
    if labels is None:
        return None
    name, inside = scan.row["image_id"], labels * scan.mask
    return clock.run("tissue_slices", name, lambda: tissue_slices(output.image, scan.mask, inside, scan.volume.affine))
