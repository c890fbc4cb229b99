"""Makes the summary that `mmh harmonize` prints at its end: counts, reasons for failures, where to look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mmh_ray.bids.ledger import LEDGER, current_rows
from mmh_ray.bids.ledger_rows import moment_of
from mmh_ray.bids.output_folder import REPORT, output_folder
from mmh_ray.bids.status import count_reasons, utc_now
from mmh_ray.object_store import is_remote, join_uri

REASONS_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """One run over an archive.

    Attributes
    ----------
    out:
        Folder of the derivatives.
    counts:
        Images of this run by status: done, skipped, failed, refused.
    flagged:
        Harmonized images of this run that a person should look at.
    reasons:
        Reason to number of images of this run without a result; the most frequent first.
    seconds:
        Duration of the run.
    report:
        Page with every image; None if it could not be written.
    ledger:
        Parquet table with a row for each image.
    """

    out: str
    counts: Mapping[str, int]
    flagged: int
    reasons: Mapping[str, int]
    seconds: float
    report: str | None
    ledger: str

    @property
    def without_result(self) -> int:
        """Images that failed or were refused."""
        return self.counts.get("failed", 0) + self.counts.get("refused", 0)

    def as_text(self) -> str:
        """A few lines for a terminal."""
        took = timedelta(seconds=round(self.seconds))
        done = self.counts.get("done", 0)
        skipped = self.counts.get("skipped", 0)
        lines = [f"Harmonized: {done}, in {took}; up to date already: {skipped}"]
        if self.without_result:
            failed = self.counts.get("failed", 0)
            refused = self.counts.get("refused", 0)
            lines.append(f"Not harmonized: {failed} failed, {refused} refused")
        reasons = list(self.reasons.items())
        lines += [f"{count:>7} x {reason}" for reason, count in reasons[:REASONS_SHOWN]]
        if len(reasons) > REASONS_SHOWN:
            lines.append(f"        and {len(reasons) - REASONS_SHOWN} more reasons")
        if self.flagged:
            lines.append(f"Flagged, for a person to look at: {self.flagged}")
        lines.append(f"Where to look: {self.report or self.ledger}")
        if self.without_result:
            lines.append("Once the causes are fixed: the same command with --retry-failed")
        return "\n".join(lines)


def summary_of(out: str, counts: Mapping[str, int], started: datetime) -> Summary:
    """The summary of a run that has just ended; the driver gives the counts, the rest is read from the ledger."""
    with output_folder(out) as output:
        rows = current_rows(output.folder)
        has_report = output.has(REPORT)
    rows_of_run = []
    for row in rows:
        finished = moment_of(row["finished"])
        if finished is not None and finished >= started:
            rows_of_run.append(row)
    return Summary(
        out=out,
        counts=dict(sorted(counts.items())),
        flagged=sum(bool(row["flags"]) for row in rows_of_run),
        reasons=count_reasons(rows_of_run),
        seconds=round((utc_now() - started).total_seconds(), 1),
        report=_place(out, REPORT) if has_report else None,
        ledger=_place(out, LEDGER),
    )


def _place(out: str, name: str) -> str:
    return join_uri(out, name) if is_remote(out) else str(Path(out, name))
