"""The cohort report: one self-contained HTML page that says what became of every image and shows the worst first.

Names, reasons and settings come from strangers' archives: the template escapes all of them, the script in the page
writes text only, and the page's own policy allows no other script and no network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mmh_ray.errors import DataError
from mmh_ray.files import is_inside
from mmh_ray.html_page import TYPES, data_uri, write_page
from mmh_ray.quality import cohort
from mmh_ray.quality import histograms as curves
from mmh_ray.quality.cohort import ImageRecord, Measure
from mmh_ray.quality.mosaic import mosaic, write_mosaic

__all__ = ["ImageRecord", "Measure", "RunFacts", "mosaic", "write_mosaic", "write_report"]

EMBEDDED_BYTES = 20_000_000
"""Most bytes of pictures inside the page; those of further images stay in their files and are loaded when shown."""
REASONS = 50
"""Most reasons listed; the table holds them all."""

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class RunFacts:
    """The run as a whole.

    Attributes
    ----------
    title:
        Head of the page.
    source, output:
        The archive and the derivatives.
    model, model_hash, version:
        URI and hash of the model; version of this software.
    started, finished:
        ISO times; ``finished`` is None where the run was interrupted or failed.
    failure:
        Why the run itself stopped, if it did.
    settings:
        Nested settings, shown by dotted key.
    versions:
        Package to version.
    """

    title: str
    source: str
    output: str
    model: str
    model_hash: str
    version: str
    started: str
    finished: str | None
    failure: str | None
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


def write_report(path: str | Path, facts: RunFacts, images: Sequence[ImageRecord], measures: Sequence[Measure]) -> None:
    """Write the page, whole or not at all; tried with up to 10,000 images.

    Pictures that are not in their place are left out. The page can be moved together with the pictures' folder.

    Raises
    ------
    DataError
        If a picture's path leaves the report's folder or does not end as a JPEG or PNG does.
    """
    path, ordered = Path(path), cohort.worst_first(images, measures)
    pairs = [(_existing(path.parent, image.before), _existing(path.parent, image.after)) for image in ordered]
    embedded = _embedded(path.parent, pairs)
    context = _summary(facts, ordered, measures) | {
        "table": _table(ordered, pairs, measures),
        "pictures": embedded,
        "pictured": sum(any(pair) for pair in pairs),
        "inside": sum(any(pair) for pair in embedded),
        "budget": EMBEDDED_BYTES,
    }
    write_page(path, "report.html.j2", ["report.css"], ["report.js"], context | {"curves": curves})


def _summary(facts: RunFacts, images: Sequence[ImageRecord], measures: Sequence[Measure]) -> dict[str, Any]:
    """Everything on the page but the table and its pictures."""
    reasons = cohort.failures(images)
    return {
        "facts": facts,
        "duration": _duration(facts),
        "settings": _flat(facts.settings),
        "statuses": cohort.STATUSES,
        "headline": cohort.headline(images, measures),
        "counts": cohort.counts(images, measures),
        "total": cohort.count_row("", "", images, measures),
        "failures": reasons[:REASONS],
        "other_failures": (len(reasons[REASONS:]), sum(len(failure.image_ids) for failure in reasons[REASONS:])),
        "plots": curves.plots(images),
        "measures": measures,
    }


def _table(images: Sequence[ImageRecord], pairs: Sequence[Pair], measures: Sequence[Measure]) -> dict[str, Any]:
    """What the script in the page makes the table of; rows are arrays to keep the page small."""
    sites = sorted({image.site for image in images if image.site is not None})
    sequences = sorted({image.sequence for image in images})
    rows = [
        [
            *(image.image_id, image.subject, image.session, image.site, image.sequence, image.status, image.reason),
            *(_number(image.seconds), image.flags, cohort.outside(image, measures)),
            [_number(image.qc.get(measure.name)) for measure in measures],
            *map(_url, pair),
        ]
        for image, pair in zip(images, pairs, strict=True)
    ]
    return {
        "sites": sites + [None] * any(image.site is None for image in images),
        "no_site": cohort.NO_SITE,
        "sequences": sequences,
        "statuses": [status for status in cohort.STATUSES if any(image.status == status for image in images)],
        "measures": [[measure.label, measure.text] for measure in measures],
        "rows": rows,
    }


def _number(value: float | None) -> float | None:
    """Six digits of a finite number, else None."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _existing(folder: Path, name: str | None) -> str | None:
    """The path of a picture below the folder; None where there is no such file, or a link leads to one elsewhere."""
    if name is None:
        return None
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in TYPES:
        raise DataError(
            f"picture {name!r}", "a .jpg or .png path inside the report's folder", "Write the pictures beside the page."
        )
    return name if (folder / path).is_file() and is_inside(folder / path, folder) else None


def _url(name: str | None) -> str | None:
    """A relative URL of a path, whatever bytes its name is of."""
    return None if name is None else quote(os.fsencode(name))


def _embedded(folder: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """``data:`` URIs of the first pictures, as many as :data:`EMBEDDED_BYTES` holds."""
    embedded: list[Pair] = []
    left = EMBEDDED_BYTES
    for pair in pairs:
        size = sum(4 * (folder / name).stat().st_size // 3 for name in pair if name)
        if (left := left - size) < 0:
            break
        before, after = (None if name is None else data_uri(folder / name) for name in pair)
        embedded.append((before, after))
    return embedded


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted key, as the command line takes them."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def _duration(facts: RunFacts) -> str | None:
    """Hours, minutes and seconds from start to finish; None where either is unknown."""
    try:
        gone = datetime.fromisoformat(facts.finished or "") - datetime.fromisoformat(facts.started)
    except (ValueError, TypeError):
        return None
    return str(gone).split(".")[0]
