"""What a run did to every image of a cohort, and what that adds up to: order of urgency, counts, reasons, one sentence."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

STATUSES = ("failed", "refused", "skipped", "done")
"""The statuses of the ledger, most urgent first."""
KEPT = "preservation"
"""The measure whose smallest values come first among images with equally many reasons to be looked at."""
NO_SITE = "(no site)"
UPPER = 1.25
"""End of the intensity axis of histograms, which begins at 0."""
MOST_BINS = 1000
"""Bins of a histogram at most."""
_ROUNDING = 0.01
"""By how much densities, which are written with 4 digits, may come to more than one."""


@dataclass(frozen=True)
class Measure:
    """A QC figure: one column of the table.

    Attributes
    ----------
    name:
        Its key in :attr:`ImageRecord.qc`, such as ``preservation``.
    label:
        Head of its column, such as "anatomy kept".
    text:
        What it is, its unit, and which way is better.
    low, high:
        A value below ``low`` or above ``high`` is marked and its image is to be looked at; None: no such bound.
    """

    name: str
    label: str
    text: str
    low: float | None
    high: float | None

    def is_outside(self, value: float) -> bool:
        """Whether the value is beyond a bound; NaN is not."""
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)


@dataclass(frozen=True)
class ImageRecord:
    """One image of the run.

    Attributes
    ----------
    image_id, subject, session, site, sequence:
        Who and what it is, as in the manifest.
    status:
        One of :data:`STATUSES`; ``skipped``: harmonized by an earlier run with the same input, model and settings.
    reason:
        Why it failed or was refused.
    seconds:
        Wall-clock time it took.
    flags:
        Plain sentences: why this image should be looked at.
    qc:
        Value by :attr:`Measure.name`; NaN or absent where there is none.
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
    reason: str | None
    seconds: float | None
    flags: tuple[str, ...]
    qc: Mapping[str, float]
    before: str | None
    after: str | None
    histogram_before: Sequence[float] | None
    histogram_after: Sequence[float] | None

    def __post_init__(self) -> None:
        assert self.status in STATUSES, f"{self.image_id}: status {self.status}, expected one of {STATUSES}"

    @property
    def is_harmonized(self) -> bool:
        """Whether there is a harmonized image, of this run or an earlier one."""
        return self.status in ("done", "skipped")


def figures_in(value: Any) -> dict[str, float]:
    """Finite numbers by name, out of what a sidecar holds under `QC`; whatever else stands there is left out."""
    if not isinstance(value, Mapping):
        return {}
    numbers = ((name, _finite(found)) for name, found in value.items() if isinstance(name, str))
    return {name: number for name, number in numbers if number is not None}


def histogram_in(value: Any) -> list[float] | None:
    """Densities in equal bins over unit intensity 0 to :data:`UPPER`, out of a sidecar; None for what cannot be such.

    What lies outside that range is counted in no bin, so the whole may be less than one.
    """
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_BINS:
        return None
    densities = [number for number in map(_finite, value) if number is not None and number >= 0]
    if len(densities) < len(value):
        return None
    whole = sum(densities) * UPPER / len(densities)
    return densities if whole <= 1 + _ROUNDING else None


def _finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else, a truth value too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def outside(image: ImageRecord, measures: Sequence[Measure]) -> list[int]:
    """Positions of the measures whose value is beyond a bound."""
    return [i for i, measure in enumerate(measures) if measure.is_outside(image.qc.get(measure.name, math.nan))]


def concerns(image: ImageRecord, measures: Sequence[Measure]) -> int:
    """How many reasons there are to look at an image: its flags, or its values beyond a bound where those are more."""
    return max(len(image.flags), len(outside(image, measures)))


def worst_first(images: Sequence[ImageRecord], measures: Sequence[Measure]) -> list[ImageRecord]:
    """Failed, refused, then the most reasons to be looked at, then the smallest :data:`KEPT`; unknown values last."""

    def urgency(image: ImageRecord) -> tuple[int, int, float, str]:
        kept = image.qc.get(KEPT, math.nan)
        rank = 2 if image.is_harmonized else STATUSES.index(image.status)
        return rank, -concerns(image, measures), math.inf if math.isnan(kept) else kept, image.image_id

    return sorted(images, key=urgency)


def headline(images: Sequence[ImageRecord], measures: Sequence[Measure]) -> str:
    """The run in one sentence: "72 of 74 images harmonized; 2 refused; 3 to look at"."""
    if not images:
        return "No images in this run"
    count = Counter(image.status for image in images)
    harmonized = [image for image in images if image.is_harmonized]
    look = sum(concerns(image, measures) > 0 for image in harmonized)
    whole = f"{len(harmonized):,} of {len(images):,} image{'s' * (len(images) > 1)} harmonized"
    earlier = f" ({count['skipped']:,} by an earlier run)" if count["skipped"] else ""
    rest = [f"{count[status]:,} {status}" for status in ("failed", "refused") if count[status]]
    seen = [f"{f'{look:,}' if look else 'none'} to look at"] if harmonized else []
    return "; ".join([whole + earlier, *rest, *seen])


class CountRow(NamedTuple):
    """Images of one sequence at one site: those of each of :data:`STATUSES`, and those to look at."""

    site: str
    sequence: str
    by_status: tuple[int, ...]
    look: int


def counts(images: Sequence[ImageRecord], measures: Sequence[Measure]) -> list[CountRow]:
    """A row for every site and sequence that occur together, ordered by name, images without a site last."""
    groups = defaultdict(list)
    for image in images:
        groups[image.site is None, image.site or NO_SITE, image.sequence].append(image)
    return [
        count_row(site, sequence, groups[none, site, sequence], measures) for none, site, sequence in sorted(groups)
    ]


def count_row(site: str, sequence: str, images: Sequence[ImageRecord], measures: Sequence[Measure]) -> CountRow:
    """The counts of these images."""
    count = Counter(image.status for image in images)
    look = sum(image.is_harmonized and concerns(image, measures) > 0 for image in images)
    return CountRow(site, sequence, tuple(count[status] for status in STATUSES), look)


class Failure(NamedTuple):
    """Images that failed or were refused for the same reason."""

    status: str
    reason: str
    image_ids: list[str]


def failures(images: Sequence[ImageRecord]) -> list[Failure]:
    """Images without a result by reason, the most frequent first; what only names the image is left out of a reason."""
    groups = defaultdict(list)
    for image in images:
        if not image.is_harmonized:
            groups[image.status, _common(image)].append(image.image_id)
    found = [Failure(status, reason, ids) for (status, reason), ids in groups.items()]
    return sorted(found, key=lambda failure: (-len(failure.image_ids), failure))


def _common(image: ImageRecord) -> str:
    """The reason without the image's own name and paths, so that images share it."""
    names = {image.image_id, f"sub-{image.subject.removeprefix('sub-')}"}
    own = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    reason = re.sub(rf"[^\s(:]*(?:{own})[^\s:;,)]*", "…", image.reason or "no reason given")
    return reason.removeprefix("…: ").strip()
