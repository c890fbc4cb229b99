"""Writes the cohort report: one self-contained HTML page with the result of every image, the worst first.

Names, reasons and settings come from untrusted archives. The template escapes all of them, the page's script writes
only text, and the page's content security policy allows no other script and no network access.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mmh_ray.bids.status import RunRecord
from mmh_ray.config.plain import by_dotted_key
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside
from mmh_ray.html_page import TYPES, data_uri, write_page
from mmh_ray.quality import cohort, histograms
from mmh_ray.quality.cohort import ImageRecord, Measure

EMBEDDED_BYTES = 20_000_000
"""Largest total size of pictures embedded in the page; further pictures are loaded from their files when shown."""
REASONS = 50
"""Largest number of reasons listed; the table contains all of them."""

Pair = tuple[str | None, str | None]


def write_report(
    path: str | Path, record: RunRecord, output: str, images: Sequence[ImageRecord], measures: Sequence[Measure]
) -> None:
    """Write the page, whole or not at all; tested with up to 10,000 images.

    Missing pictures are left out. The page can be moved together with the pictures' folder.

    Parameters
    ----------
    output:
        The name of the derivatives' folder on the page.

    Raises
    ------
    DataError
        If a picture's path leaves the report's folder, or its suffix is not that of a JPEG or PNG file.
    """
    folder = Path(path).parent
    ordered = cohort.worst_first(images, measures)
    pairs: list[Pair] = []
    for image in ordered:
        before = _existing(folder, image.before)
        after = _existing(folder, image.after)
        pairs.append((before, after))
    embedded = _embedded(folder, pairs)
    context = _summary(record, ordered, measures) | {
        "output": output,
        "table": _table(ordered, pairs, measures),
        "pictures": embedded,
        "pictured": sum(any(pair) for pair in pairs),
        "inside": sum(any(pair) for pair in embedded),
        "budget": EMBEDDED_BYTES,
        "histograms": histograms,
    }
    write_page(path, "report.html.j2", ["report.css"], ["report.js"], context)


def _summary(record: RunRecord, images: Sequence[ImageRecord], measures: Sequence[Measure]) -> dict[str, Any]:
    """Everything on the page but the table and its pictures."""
    failures = cohort.failures(images)
    listed = failures[:REASONS]
    others = failures[REASONS:]
    images_of_others = sum(len(failure.image_ids) for failure in others)
    return {
        "record": record,
        "duration": _duration(record),
        "settings": by_dotted_key(record.settings),
        "statuses": cohort.STATUSES,
        "headline": cohort.headline(images, measures),
        "counts": cohort.counts(images, measures),
        "total": cohort.count_row("", "", images, measures),
        "failures": listed,
        "other_failures": (len(others), images_of_others),
        "plots": histograms.plots(images),
        "measures": measures,
    }


def _table(images: Sequence[ImageRecord], pairs: Sequence[Pair], measures: Sequence[Measure]) -> dict[str, Any]:
    """The data from which the page's script builds the table; rows are arrays to keep the page small."""
    sites: list[str | None] = []
    sites += sorted({image.site for image in images if image.site is not None})
    if any(image.site is None for image in images):
        sites.append(None)
    statuses_there = {image.status for image in images}
    return {
        "sites": sites,
        "no_site": cohort.NO_SITE,
        "sequences": sorted({image.sequence for image in images}),
        "statuses": [status for status in cohort.STATUSES if status in statuses_there],
        "measures": [[measure.label, measure.text] for measure in measures],
        "rows": [_table_row(image, pair, measures) for image, pair in zip(images, pairs, strict=True)],
    }


def _table_row(image: ImageRecord, pair: Pair, measures: Sequence[Measure]) -> list[Any]:
    """The values of one image, in the order that the script expects."""
    problem = image.problem
    before, after = pair
    return [
        image.image_id,
        image.subject,
        image.session,
        image.site,
        image.sequence,
        image.status,
        problem and problem.reason,
        problem and problem.expected,
        problem and problem.remedy,
        _number(image.seconds),
        image.flags,
        cohort.outside(image, measures),
        [_number(image.qc.get(measure.name)) for measure in measures],
        _url(before),
        _url(after),
    ]


def _number(value: float | None) -> float | None:
    """A finite number rounded to six digits, else None."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _existing(folder: Path, name: str | None) -> str | None:
    """The path of a picture below the folder; None if the file is missing or is a link out of the folder."""
    if name is None:
        return None
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts
    if leads_out or path.suffix.lower() not in TYPES:
        expected = "a .jpg or .png path inside the report's folder"
        raise DataError(f"picture {name!r}", expected, "Write the pictures into the page's folder.")
    is_there = (folder / path).is_file() and is_inside(folder / path, folder)
    return name if is_there else None


def _url(name: str | None) -> str | None:
    """The relative URL of a path; its name may contain any bytes."""
    return name and quote(os.fsencode(name))


def _embedded(folder: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """``data:`` URIs of the first pictures, as many as fit into :data:`EMBEDDED_BYTES`."""
    embedded: list[Pair] = []
    bytes_left = EMBEDDED_BYTES
    for before, after in pairs:
        sizes = [(folder / name).stat().st_size for name in (before, after) if name]
        bytes_left -= sum(4 * size // 3 for size in sizes)  # in Base64
        if bytes_left < 0:
            break
        uri_before = before and data_uri(folder / before)
        uri_after = after and data_uri(folder / after)
        embedded.append((uri_before, uri_after))
    return embedded


def _duration(record: RunRecord) -> str | None:
    """Hours, minutes and seconds from start to finish; None if either is unknown."""
    try:
        started = datetime.fromisoformat(record.started)
        finished = datetime.fromisoformat(record.finished or "")
        duration = finished - started
    except (ValueError, TypeError):
        return None
    whole_seconds, _, _ = str(duration).partition(".")
    return whole_seconds
