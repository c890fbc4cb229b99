"""Writes OUT/report.html from the record, the ledger and the sidecars of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmh_ray.bids.derivatives import figure_paths, read_sidecar
from mmh_ray.bids.entities import parse
from mmh_ray.bids.output_folder import REPORT, OutputFolder
from mmh_ray.bids.rows import MADE, LedgerRow, problem_of
from mmh_ray.bids.status import RunRecord
from mmh_ray.config import QualityConfig
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside
from mmh_ray.object_store import is_remote
from mmh_ray.quality.cohort import ImageRecord, figures_in, histogram_in
from mmh_ray.quality.measures import measures
from mmh_ray.quality.report import write_report

log = logging.getLogger(__name__)

NO_FIGURES = "no figures: the sidecar is missing or damaged"
"""Flag of an image that was harmonized but whose measures are lost."""


def write_report_of(output: OutputFolder, record: RunRecord, rows: Iterable[LedgerRow], quality: QualityConfig) -> bool:
    """Write the report of a run into its output folder, which may be in an object store; returns whether it succeeded.

    A report that cannot be written only causes a warning, so that it does not hide another error.
    """
    rows = list(rows)
    place = output.place if is_remote(output.place) else str(output.folder.resolve())
    try:
        output.fetch_shown(rows)
        images = [image_record(output.folder, row) for row in rows]
        lost = sum(NO_FIGURES in image.flags for image in images)
        if lost:
            log.warning("%s: %d images have no figures: their sidecar is missing or damaged", output.place, lost)
        write_report(output.folder / REPORT, record, place, images, measures(quality))
        output.publish(REPORT)
    except Exception as error:
        log.debug("raised here:", exc_info=True)
        log.warning("%s: no report (%s: %s)", output.place, type(error).__name__, error)
        return False
    return True


def image_record(out: Path, row: LedgerRow) -> ImageRecord:
    """Combine ledger and sidecar of an image. For a failed image, the result of an earlier run is not shown."""
    is_made = row["status"] in MADE
    output = _output_inside(out, row) if is_made else None
    sidecar = read_sidecar(out / output) if output else {}
    qc = figures_in(sidecar.get("QC"))
    histograms = sidecar.get("BrainHistogram")
    if not isinstance(histograms, Mapping):
        histograms = {}
    flags = tuple(row["flags"] or ())
    if is_made and not qc:
        flags = (*flags, NO_FIGURES)
    before, after = _pictures(out, output)
    subject, session = _person(row)
    problem = problem_of(row)
    return ImageRecord(
        image_id=row["image_id"],
        subject=subject,
        session=session,
        site=row["site"],
        sequence=row["sequence"] or "",
        status=row["status"],
        problem=problem and problem.without_path(row["source"]),
        seconds=row["seconds"],
        flags=flags,
        qc=qc,
        before=before,
        after=after,
        histogram_before=histogram_in(histograms.get("Before")),
        histogram_after=histogram_in(histograms.get("After")),
    )


def _output_inside(out: Path, row: LedgerRow) -> str | None:
    """The image's output, relative to the folder; None if there is none or it is a link out of the folder."""
    output = row["output"]
    return output if output and is_inside(out / output, out) else None


def _pictures(out: Path, output: str | None) -> tuple[str | None, str | None]:
    """The existing pictures before and after, relative to the folder; links out of the folder are ignored."""
    if output is None:
        return None, None
    before, after = figure_paths(out / output)
    return _picture(before, out), _picture(after, out)


def _picture(path: Path, out: Path) -> str | None:
    if os.path.isfile(path) and is_inside(path, out):
        return str(path.relative_to(out))
    return None


def _person(row: LedgerRow) -> tuple[str, str | None]:
    """Subject and session from the name of the scan."""
    try:
        entities = parse(row["source"] or "")
    except DataError:
        return "", None
    return entities.subject, entities.session
