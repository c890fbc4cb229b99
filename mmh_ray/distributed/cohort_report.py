"""OUT/report.html from what a run left: its record, the ledger and the sidecars."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmh_ray.bids.derivatives import figure_paths, read_sidecar
from mmh_ray.bids.entities import parse
from mmh_ray.bids.ledger import MADE
from mmh_ray.bids.status import RunRecord
from mmh_ray.config import QualityConfig
from mmh_ray.errors import DataError
from mmh_ray.evaluation.cohort import ImageRecord
from mmh_ray.evaluation.quality import measures
from mmh_ray.evaluation.report import RunFacts, write_report

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


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
        write_report(Path(out) / "report.html", facts, images, measures(quality))
    except Exception as error:
        log.debug("raised here:", exc_info=True)
        log.warning("%s: no report (%s: %s)", out, type(error).__name__, error)
        return False
    return True


def _image(out: Path, row: Row) -> ImageRecord:
    """What ledger and sidecar know of an image; of one that failed, what an earlier run made is not shown as its result."""
    if row["status"] not in MADE:
        row = {**row, "output": None}
    sidecar = read_sidecar(out / row["output"]) if row["output"] else {}
    curves = sidecar.get("BrainHistogram", {})
    before, after = _figures(out, row)
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
        flags=tuple(row["flags"] or ()),
        qc=sidecar.get("QC", {}),
        before=before,
        after=after,
        histogram_before=curves.get("Before"),
        histogram_after=curves.get("After"),
    )


def _figures(out: Path, row: Row) -> tuple[str | None, str | None]:
    if row["output"] is None:
        return None, None
    before, after = (
        str(path.relative_to(out)) if path.is_file() else None for path in figure_paths(out / row["output"])
    )
    return before, after


def _person(row: Row) -> tuple[str, str | None]:
    try:
        entities = parse(row["source"])
    except DataError:
        return "", None
    return entities.subject, entities.session
