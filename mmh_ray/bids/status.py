"""How far a run over an archive has come: its record, OUT/logs/run.json, and what the ledger says."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mmh_ray.bids.ledger import current_rows, is_locked
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.provenance import write_json

RECORD = "logs/run.json"


@dataclass(frozen=True)
class RunRecord:
    """The latest run into a folder of derivatives."""

    source: str
    """Archive that is harmonized."""
    model: str
    """URI of the model."""
    model_hash: str
    version: str
    """Of this software."""
    images: int
    """Images that the run looks at."""
    started: str
    """UTC, ISO 8601, as all times here."""
    finished: str | None = None
    failure: str | None = None
    """Why the run stopped before its end, if it could still say so."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package to version."""

    def write(self, out: str | Path) -> None:
        """Write OUT/logs/run.json, whole or not at all."""
        write_json(Path(out) / RECORD, dataclasses.asdict(self))

    @classmethod
    def read(cls, out: str | Path) -> RunRecord:
        """The record of a folder.

        Raises
        ------
        ConfigError
            If the folder holds none.
        DataError
            If it cannot be read.
        """
        path = Path(out) / RECORD
        if not path.is_file():
            raise ConfigError(f"{out}: no {RECORD}", "a folder that `mmh harmonize` wrote to", "Name another folder.")
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{path}: {error}", "the record of a run", "Remove it; the ledger keeps what was done."
            ) from error


@dataclass(frozen=True)
class RunStatus:
    """What `mmh status` tells.

    Attributes
    ----------
    state:
        ``running``, ``finished``, ``failed`` (it said why) or ``interrupted`` (it was killed).
    counts:
        Status to number of images, over every run into the folder.
    reasons:
        Reason to number of failed and refused images, the most frequent first.
    flagged:
        Images that were harmonized but should be looked at.
    done:
        Images that the latest run has finished, in whichever way.
    per_second:
        Images per second that the latest run worked on, those left out that it skipped; None before its first.
    seconds_left:
        At that rate, so at most; None unless it is running.
    """

    record: RunRecord
    state: str
    counts: dict[str, int]
    reasons: dict[str, int]
    flagged: int
    done: int
    per_second: float | None
    seconds_left: float | None

    def as_text(self) -> str:
        """A few lines for a terminal."""
        record = self.record
        done = f"{self.done} of {record.images} images"
        if self.per_second:
            done += f", {60 * self.per_second:.1f} a minute"
        if self.seconds_left is not None:
            done += f", {timedelta(seconds=round(self.seconds_left))} left"
        lines = [f"{self.state} since {record.started}: {done}"]
        lines += [f"stopped: {record.failure}"] if record.failure else []
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        lines.append(f"in the folder: {counts or 'nothing yet'}; {self.flagged} to look at")
        return "\n".join(lines + [f"{count:>7} x {reason}" for reason, count in self.reasons.items()])


def run_status(out: str | Path, now: datetime | None = None) -> RunStatus:
    """How far the latest run into a folder has come; also while it goes on, from another terminal.

    Raises
    ------
    ConfigError
        If no run ever wrote to the folder.
    DataError
        If its record or ledger cannot be read.
    """
    record, rows = RunRecord.read(out), current_rows(out)
    running = is_locked(out) and record.finished is None
    recent = [row for row in rows if row["finished"] and row["finished"] >= record.started]
    end = record.finished or (now or utc_now()).isoformat() if running or record.finished else _last(recent, record)
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(record.started)).total_seconds()
    worked = sum(row["status"] != "skipped" for row in recent)
    rate = worked / seconds if worked and seconds > 0 else None
    return RunStatus(
        record,
        _state(record, running),
        dict(Counter(row["status"] for row in rows)),
        count_reasons(rows),
        sum(bool(row["flags"]) for row in rows),
        len(recent),
        rate,
        (record.images - len(recent)) / rate if running and rate else None,
    )


def count_reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Reason to number of images, the most frequent first; the name of the file is left out so that equal reasons meet."""
    reasons = Counter(plain_reason(row) for row in rows if row["reason"])
    return dict(reasons.most_common())


def plain_reason(row: Mapping[str, Any]) -> str:
    """A row's reason without the name of its file."""
    return str(row["reason"]).removeprefix(f"{row.get('source') or row.get('uri')}: ")


def utc_now() -> datetime:
    """Now, in UTC, to the millisecond."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _state(record: RunRecord, running: bool) -> str:
    if running:
        return "running"
    if record.finished is None:
        return "interrupted"
    return "failed" if record.failure else "finished"


def _last(recent: list[dict[str, Any]], record: RunRecord) -> str:
    return max([row["finished"] for row in recent], default=record.started)
