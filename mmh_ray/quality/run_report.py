"""OUT/report.html from what a run left: its record, the ledger and the sidecars."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmh_ray.bids.derivatives import figure_paths, read_sidecar
from mmh_ray.bids.entities import parse
from mmh_ray.bids.ledger import MADE
from mmh_ray.bids.status import RunRecord
from mmh_ray.config import QualityConfig
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside
from mmh_ray.quality.checks import measures
from mmh_ray.quality.cohort import ImageRecord, figures_in, histogram_in
from mmh_ray.quality.report import RunFacts, write_report

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

NO_FIGURES = "no figures: the sidecar is missing or damaged"
"""Flag of an image that was harmonized, and of which nothing is known any more."""


def write_cohort_report(out: str | Path, record: RunRecord, rows: Iterable[Row], quality: QualityConfig) -> bool:
    """Write the report, and return whether it was: one that cannot be costs no image and hides no other error, only a warning."""
    facts = RunFacts(
        title="Harmonized cohort",
        source=record.source,
        output=str(Path(out).resolve()),
        model=record.model,
        model_hash=record.model_hash,
        version=record.version,
        started=record.started,
        finished=record.finished,
        failure=record.failure,
        settings=record.settings,
        versions=record.versions,
    )
    try:
        images = [_image(Path(out), row) for row in rows]
        _warn_of_lost_figures(images, out)
        write_report(Path(out) / "report.html", facts, images, measures(quality))
    except Exception as error:
        log.debug("raised here:", exc_info=True)
        log.warning("%s: no report (%s: %s)", out, type(error).__name__, error)
        return False
    return True


def _warn_of_lost_figures(images: Iterable[ImageRecord], out: str | Path) -> None:
    lost = sum(NO_FIGURES in image.flags for image in images)
    if lost:
        log.warning("%s: %d images have no figures: their sidecar is missing or damaged", out, lost)


def _image(out: Path, row: Row) -> ImageRecord:
    """What ledger and sidecar know of an image; of one that failed, what an earlier run made is not shown as its result."""
    is_made = row["status"] in MADE
    output = row["output"] if is_made and row["output"] and is_inside(out / row["output"], out) else None
    sidecar = read_sidecar(out / output) if output else {}
    qc = figures_in(sidecar.get("QC"))
    curves = sidecar.get("BrainHistogram")
    if not isinstance(curves, Mapping):
        curves = {}
    flags = tuple(row["flags"] or ())
    if is_made and not qc:
        flags = (*flags, NO_FIGURES)
    before, after = _figures(out, output)
    subject, session = _person(row)
    return ImageRecord(
        image_id=row["image_id"],
        subject=subject,
        session=session,
        site=row["site"],
        sequence=row["sequence"] or "",
        status=row["status"],
        reason=row["reason"],
        seconds=row["seconds"],
        flags=flags,
        qc=qc,
        before=before,
        after=after,
        histogram_before=histogram_in(curves.get("Before")),
        histogram_after=histogram_in(curves.get("After")),
    )


def _figures(out: Path, output: str | None) -> tuple[str | None, str | None]:
    """Pictures before and after, relative to the folder; one that a link leads out of it is none."""
    if output is None:
        return None, None
    before, after = (
        str(path.relative_to(out)) if os.path.isfile(path) and is_inside(path, out) else None
        for path in figure_paths(out / output)
    )
    return before, after


def _person(row: Row) -> tuple[str, str | None]:
    try:
        entities = parse(row["source"] or "")
    except DataError:
        return "", None
    return entities.subject, entities.session
