"""Summarises the images of a run: order of urgency, counts, reasons for failures, and a headline."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmh_ray.bids.rows import MADE, NO_RESULT, Problem, Status

STATUSES = (Status.FAILED, Status.REFUSED, Status.SKIPPED, Status.DONE)
"""The statuses of the ledger, most urgent first."""
KEPT = "preservation"
"""Among images with equally many reasons to be looked at, those with the smallest values of this measure come first."""
NO_SITE = "(no site)"
UPPER = 1.25
"""Upper end of the intensity axis of histograms, which begins at 0."""
MOST_BINS = 1000
"""Largest number of bins in a histogram."""
_ROUNDING = 0.01
"""By how much the integral of the densities, which are written with 4 digits, may exceed 1."""


@dataclass(frozen=True)
class Measure:
    """A quality measure: one column of the table.

    Attributes
    ----------
    name:
        Its key in :attr:`ImageRecord.qc`, such as ``preservation``.
    label:
        Heading of its column, such as "anatomy kept".
    text:
        What it is, its unit, and which direction is better.
    low, high:
        An image with a value below ``low`` or above ``high`` is flagged; None: no such bound.
    """

    name: str
    label: str
    text: str
    low: float | None = None
    high: float | None = None

    def flag(self, value: float) -> str | None:
        """A sentence if the value is beyond a bound, else None; NaN is beyond none."""
        if self.low is not None and value < self.low:
            shown = _distinct(value, self.low)
            return f"{self.label}: {shown} is below {self.low:g}"
        if self.high is not None and value > self.high:
            shown = _distinct(value, self.high)
            return f"{self.label}: {shown} is above {self.high:g}"
        return None


def _distinct(value: float, bound: float) -> str:
    """A value with three digits, or with as many as distinguish it from its bound."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if float(text) != bound:
            return text
    return repr(value)


@dataclass(frozen=True)
class ImageRecord:
    """One image of the run.

    Attributes
    ----------
    image_id, subject, session, site, sequence:
        As in the manifest.
    status:
        One of :data:`STATUSES`; ``skipped``: harmonized by an earlier run with the same input, model and settings.
    problem:
        Why it failed or was refused.
    seconds:
        Wall-clock time.
    flags:
        Reasons why a person should look at this image, as sentences.
    qc:
        Values by :attr:`Measure.name`; NaN or absent if unknown.
    before, after:
        JPEG or PNG mosaics of one size (:func:`~mmh_ray.quality.mosaic.write_mosaic`), as paths relative to the
        report's folder.
    histogram_before, histogram_after:
        Densities of brain intensities in equal bins over unit intensity 0 to 1.25.
    """

    image_id: str
    subject: str
    session: str | None
    site: str | None
    sequence: str
    status: str
    problem: Problem | None
    seconds: float | None
    flags: tuple[str, ...]
    qc: Mapping[str, float]
    before: str | None
    after: str | None
    histogram_before: Sequence[float] | None
    histogram_after: Sequence[float] | None

    def __post_init__(self) -> None:
        is_known = self.status in STATUSES
        assert is_known, f"{self.image_id}: status {self.status}, expected one of {STATUSES}"

    @property
    def is_harmonized(self) -> bool:
        """Whether there is a harmonized image, from this run or an earlier one."""
        return self.status in MADE


def figures_in(value: Any) -> dict[str, float]:
    """The finite numbers by name in a sidecar's `QC` entry; everything else is ignored."""
    if not isinstance(value, Mapping):
        return {}
    figures = {}
    for name, figure in value.items():
        number = _finite(figure)
        if isinstance(name, str) and number is not None:
            figures[name] = number
    return figures


def histogram_in(value: Any) -> list[float] | None:
    """A histogram from a sidecar: densities in equal bins over unit intensity 0 to :data:`UPPER`; None if invalid.

    Intensities outside that range are in no bin, so the integral may be less than 1.
    """
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_BINS:
        return None
    densities = []
    for item in value:
        density = _finite(item)
        if density is None or density < 0:
            return None
        densities.append(density)
    bin_width = UPPER / len(densities)
    whole = sum(densities) * bin_width
    return densities if whole <= 1 + _ROUNDING else None


def _finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else, including booleans."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def outside(image: ImageRecord, measures: Sequence[Measure]) -> list[int]:
    """Indices of the measures whose value is beyond a bound."""
    values = [image.qc.get(measure.name, math.nan) for measure in measures]
    return [index for index, measure in enumerate(measures) if measure.flag(values[index])]


def concerns(image: ImageRecord, measures: Sequence[Measure]) -> int:
    """The number of reasons to look at an image: its flags or its values beyond a bound, whichever are more."""
    flags = len(image.flags)
    values_outside = len(outside(image, measures))
    return max(flags, values_outside)


def worst_first(images: Sequence[ImageRecord], measures: Sequence[Measure]) -> list[ImageRecord]:
    """Sort: failed, refused, then by most reasons to look at it, then by the smallest :data:`KEPT`; unknown last."""

    def urgency(image: ImageRecord) -> tuple[int, int, float, str]:
        rank = len(NO_RESULT) if image.is_harmonized else STATUSES.index(Status(image.status))
        kept = image.qc.get(KEPT, math.nan)
        if math.isnan(kept):
            kept = math.inf
        return rank, -concerns(image, measures), kept, image.image_id

    return sorted(images, key=urgency)


def headline(images: Sequence[ImageRecord], measures: Sequence[Measure]) -> str:
    """Summarise the run in one sentence: "72 of 74 images harmonized; 2 refused; 3 to look at"."""
    if not images:
        return "No images in this run"
    counts = Counter(image.status for image in images)
    harmonized = [image for image in images if image.is_harmonized]
    plural = "s" if len(images) > 1 else ""
    first = f"{len(harmonized):,} of {len(images):,} image{plural} harmonized"
    if counts[Status.SKIPPED]:
        first += f" ({counts[Status.SKIPPED]:,} by an earlier run)"
    parts = [first]
    for status in NO_RESULT:
        if counts[status]:
            parts.append(f"{counts[status]:,} {status}")
    if harmonized:
        to_look_at = sum(concerns(image, measures) > 0 for image in harmonized)
        parts.append(f"{to_look_at:,} to look at" if to_look_at else "none to look at")
    return "; ".join(parts)


class CountRow(NamedTuple):
    """The number of images of one sequence at one site, for each of :data:`STATUSES` and to be looked at."""

    site: str
    sequence: str
    by_status: tuple[int, ...]
    look: int


def counts(images: Sequence[ImageRecord], measures: Sequence[Measure]) -> list[CountRow]:
    """One row for each combination of site and sequence, sorted by name; images without a site last."""
    groups: defaultdict[tuple[bool, str, str], list[ImageRecord]] = defaultdict(list)
    for image in images:
        has_no_site = image.site is None
        groups[has_no_site, image.site or NO_SITE, image.sequence].append(image)
    rows = []
    for (_, site, sequence), members in sorted(groups.items()):
        rows.append(count_row(site, sequence, members, measures))
    return rows


def count_row(site: str, sequence: str, images: Sequence[ImageRecord], measures: Sequence[Measure]) -> CountRow:
    """The counts of these images."""
    counts = Counter(image.status for image in images)
    by_status = tuple(counts[status] for status in STATUSES)
    harmonized = [image for image in images if image.is_harmonized]
    to_look_at = sum(concerns(image, measures) > 0 for image in harmonized)
    return CountRow(site, sequence, by_status, to_look_at)


class Failure(NamedTuple):
    """Images that failed or were refused for the same reason."""

    status: str
    problem: Problem
    image_ids: list[str]


def failures(images: Sequence[ImageRecord]) -> list[Failure]:
    """Group the images without a result by their problem, the most frequent first."""
    ids_by_problem: defaultdict[tuple[str, Problem], list[str]] = defaultdict(list)
    for image in images:
        if image.is_harmonized:
            continue
        key = (image.status, _common_problem(image))
        ids_by_problem[key].append(image.image_id)
    grouped = [Failure(*key, image_ids) for key, image_ids in ids_by_problem.items()]

    def most_frequent_first(failure: Failure) -> tuple[int, str, str]:
        return -len(failure.image_ids), failure.status, failure.problem.text

    return sorted(grouped, key=most_frequent_first)


def _common_problem(image: ImageRecord) -> Problem:
    """The problem without the image's name and paths in its reason, so that it is the same for several images."""
    problem = image.problem or Problem("no reason given")
    subject = f"sub-{image.subject.removeprefix('sub-')}"
    longest_first = sorted({image.image_id, subject}, key=len, reverse=True)
    any_name = "|".join(re.escape(name) for name in longest_first)
    path_with_name = rf"[^\s(:]*(?:{any_name})[^\s:;,)]*"
    reason = re.sub(path_with_name, "…", problem.reason)
    without_path = reason.removeprefix("…: ").strip()
    return problem._replace(reason=without_path)
