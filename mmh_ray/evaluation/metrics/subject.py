"""One subject's scans of one sequence under every method: small numbers out, whatever the size of the scans."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mmh_ray.errors import DataError
from mmh_ray.evaluation.baselines.image_baselines import quantile_function
from mmh_ray.evaluation.inputs.scans import (
    Case,
    Row,
    Scan,
    Settings,
    Truth,
    read_labels,
    read_output,
    read_scan,
    read_truth,
)
from mmh_ray.evaluation.metrics.agreement import scale_by_percentiles
from mmh_ray.evaluation.metrics.features import image_features
from mmh_ray.evaluation.metrics.per_image import Bulk, Clock, Output, bulk_of, make_output, measure_image, measure_pair
from mmh_ray.evaluation.metrics.preservation import dissimilarity_map
from mmh_ray.evaluation.metrics.registry import RAW
from mmh_ray.evaluation.report.figures import middle_slice

Bulks = dict[tuple[str, str], Bulk]
"""By method and image."""


@dataclass
class Score:
    """What is known of one case, or of all of them.

    Attributes
    ----------
    images:
        A row per image and method.
    pairs:
        A row per pair of one subject's images and method.
    problems:
        Images that a method has no usable output of: ``method``, ``image_id``, ``status`` (missing, ambiguous,
        unusable), ``reason``.
    notes:
        What else to know.
    clock:
        Processor seconds and calls by measure.
    maps:
        Of a pictured case: middle slices of :func:`~mmh_ray.evaluation.metrics.preservation.dissimilarity_map` by method.
    slices, sites:
        Of a pictured case: middle slices by method and ``truth``, one per site; methods that lack a site are left out.
    """

    images: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    problems: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    slices: dict[str, list[np.ndarray]] = field(default_factory=dict)
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)
    sites: list[str] = field(default_factory=list)

    def fail(self, method: str, row: Row, reason: object) -> None:
        """Keep an image that could not be read or scored, with its reason."""
        facts = {"method": method, "image_id": row["image_id"], "status": "unusable", "reason": str(reason)}
        self.problems.append(facts)

    def add(self, other: Score) -> None:
        """Take in another case's rows and seconds, not its pictures."""
        for name in ("images", "pairs", "problems", "notes"):
            getattr(self, name).extend(getattr(other, name))
        self.clock.add(other.clock)


class Training(NamedTuple):
    """All that baselines are fitted from: quantile functions before and after N4, and features, of one training image."""

    before: np.ndarray
    after: np.ndarray
    features: Mapping[str, float]


def score(case: Case, settings: Settings) -> tuple[Score, Bulks]:
    """Apply every method to a subject's scans and measure; one method's images are held at a time."""
    found, bulks = Score(), Bulks()
    clock = found.clock
    truth = _truth(case, settings, found)
    scans = [scan for row in case.rows if (scan := _scan(row, settings, truth, found)) is not None]
    found.sites = [scan.row["site"] for scan in scans] if case.pictured else []
    raw_labels: dict[str, np.ndarray | None] = {}
    for method in settings.methods:
        outputs = [make_output(method, *made, clock) for made in _apply(method, scans, settings, found)]
        if method == RAW:
            raw_labels = {output.scan.row["image_id"]: output.labels for output in outputs}
        found.images += [
            measure_image(output, truth, clock, raw_labels.get(output.scan.row["image_id"])) for output in outputs
        ]
        found.pairs += [measure_pair(a, b, clock) for a, b in itertools.combinations(outputs, 2)]
        for output in outputs:
            name = output.scan.row["image_id"]
            bulks[method, name] = bulk_of(output, truth, settings, clock, raw_labels.get(name))
        if case.pictured and len(outputs) == len(scans):
            found.slices[method] = [_slice(output.scan, output.scaled) for output in outputs]
            found.maps[method] = [_slice(output.scan, _unlike(output)) for output in outputs]
    if truth is not None and case.pictured:
        found.slices["truth"] = [_slice(scan, scale_by_percentiles(truth.noisefree, scan.mask)) for scan in scans]
    return found, bulks


def training_facts(row: Row, iterations: tuple[int, ...]) -> Training:
    """What baselines need of one training image."""
    scan = read_scan(row, iterations)
    before, after = (quantile_function(image, scan.mask) for image in (scan.volume.data, scan.corrected))
    return Training(before, after, image_features(scan.volume.data, scan.mask, scan.volume.spacing))


def _apply(method: str, scans: list[Scan], settings: Settings, found: Score) -> Iterator[tuple[Scan, np.ndarray]]:
    """Every scan with what the method makes of it; an output that cannot be used is a problem of its own."""
    for scan in scans:
        baseline = settings.baselines.get(scan.row["sequence"], {}).get(method)
        if baseline is not None:
            yield scan, baseline.apply(scan.corrected if baseline.bias_corrected else scan.volume.data, scan.mask)
        elif method in scan.row["outputs"]:
            try:
                yield scan, read_output(scan.row["outputs"][method], scan)
            except DataError as error:
                found.fail(method, scan.row, error)


def _scan(row: Row, settings: Settings, truth: Truth | None, found: Score) -> Scan | None:
    try:
        scan = read_scan(row, settings.iterations, truth)
    except DataError as error:
        found.fail("raw", row, error)
        return None
    return _with_labels(scan, settings, found.clock)


def _with_labels(scan: Scan, settings: Settings, clock: Clock) -> Scan:
    """A label map that cannot be used leaves a note, and the scan is scored without it."""
    if scan.row.get("labels_uri") is None:
        return scan
    image_id = scan.row["image_id"]
    drawn = clock.run("labels", image_id, read_labels, scan, settings.label_table)
    if drawn is None:
        return scan
    for remark in drawn.remarks():
        voxels = sum(drawn.unknown.values())
        clock.notes[remark].append(f"{image_id}, {voxels} unknown voxels" if voxels else image_id)
    return replace(scan, drawn=drawn)


def _truth(case: Case, settings: Settings, found: Score) -> Truth | None:
    if settings.truth is None:
        return None
    try:
        return read_truth(settings.truth, case.subject, case.sequence)
    except DataError as error:
        found.notes.append(f"no truth for sub-{case.subject} {case.sequence}: {error}")
        return None


def _unlike(output: Output) -> np.ndarray:
    return dissimilarity_map(output.image, output.scan.volume.data, output.scan.mask)


def _slice(scan: Scan, image: np.ndarray) -> np.ndarray:
    return middle_slice(image, scan.mask, scan.volume.affine)
