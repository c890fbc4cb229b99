"""`mmh status`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, json_option
from mmh_ray.cli.running import DONE, FAILED, show
from mmh_ray.config import Config, QualityConfig, from_dict
from mmh_ray.errors import MMHError

if TYPE_CHECKING:
    from mmh_ray.bids.status import RunRecord, RunStatus

log = logging.getLogger(__name__)


@click.command("status", cls=Command, examples=["mmh status OUT", "mmh status OUT --report"])
@click.argument("out", type=EXISTING)
@click.option("--report", is_flag=True, help="Write OUT/report.html again, for example after a run that was killed.")
@json_option
def status(config: Config, out: str, report: bool, as_json: bool) -> int:
    """Show the progress of a run of `mmh harmonize`.

    OUT is its folder of derivatives, or the URI of that folder.
    """
    from mmh_ray.bids.output_folder import output_folder
    from mmh_ray.bids.status import run_status

    with output_folder(out) as output:
        current = run_status(output.folder, locked=output.is_locked())
    show(_as_fields(current) if as_json else current.as_text())
    return write_report(out) if report else DONE


def write_report(out: str) -> int:
    """Write OUT/report.html from the ledger; returns the exit code."""
    from mmh_ray.bids.ledger import current_rows
    from mmh_ray.bids.output_folder import output_folder
    from mmh_ray.bids.status import run_status
    from mmh_ray.quality.run_report import write_report_of

    with output_folder(out) as output:
        record = run_status(output.folder).record
        rows = current_rows(output.folder)
        is_written = write_report_of(output, record, rows, quality_bounds(record))
    return DONE if is_written else FAILED


def _as_fields(current: RunStatus) -> dict[str, Any]:
    record = current.record
    return {
        "state": current.state,
        "source": record.source,
        "model": record.model,
        "version": record.version,
        "started": record.started,
        "finished": record.finished,
        "failure": record.failure,
        "images": record.images,
        "images_done": current.done,
        "images_per_second": current.per_second,
        "seconds_left": current.seconds_left,
        "counts": current.counts,
        "flagged": current.flagged,
        "reasons": current.reasons,
    }


def quality_bounds(record: RunRecord) -> QualityConfig:
    """Limits of the quality checks of a run; the defaults if its record is damaged."""
    try:
        return from_dict(QualityConfig, record.settings.get("quality", {}))
    except (MMHError, OverflowError) as error:
        log.warning("the record of the run is damaged: the report uses the default quality bounds (%s)", error)
        return QualityConfig()
