"""Reports the progress of a run over an archive, from its record OUT/logs/run.json and the ledger."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Interval, Predicate
from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from mmh_ray.bids.ledger import current_rows, is_locked
from mmh_ray.bids.ledger_rows import encodable, is_moment, is_text, moment_of
from mmh_ray.bids.rows import LedgerRow, Status, problem_of
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.files import read_object
from mmh_ray.provenance import check_place, write_json

RECORD = "logs/run.json"
MOST_IMAGES = 10**12
"""Most images of a run, more than exist; a record with more is damaged."""
LONGEST_S = 10 * 365.25 * 86400
"""Longest time left that is shown, in seconds."""
MOST_LEVELS = 9
"""Most levels of a record's settings."""


def _are_settings(value: Mapping[str, Any]) -> bool:
    """Whether settings from JSON have few enough levels and only text that UTF-8 can encode."""
    return _is_shallow(value, MOST_LEVELS) and is_text(json.dumps(value, ensure_ascii=False))


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, Mapping | list):
        return True
    inner = value.values() if isinstance(value, Mapping) else value
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


Text = Annotated[str, Strict(), Predicate(is_text)]
Moment = Annotated[Text, Predicate(is_moment)]
"""UTC, ISO 8601."""


@dataclass(frozen=True)
class RunRecord:
    """The latest run into a folder of derivatives; the types are checked when it is read."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    source: Text
    """Archive that is harmonized."""
    model: Text
    """URI of the model."""
    model_hash: Text
    version: Text
    """Version of this software."""
    images: Annotated[int, Strict(), Interval(ge=0, le=MOST_IMAGES)]
    """Number of images that the run covers."""
    started: Moment
    finished: Moment | None = None
    failure: Text | None = None
    """Why the run stopped before its end, if it could still record this."""
    settings: Annotated[Mapping[str, Any], Predicate(_are_settings)] = field(default_factory=dict)
    versions: Mapping[Text, Text] = field(default_factory=dict)
    """Package to version."""

    def write(self, out: str | Path) -> None:
        """Write OUT/logs/run.json, whole or not at all; DataError if a link leads it out of OUT."""
        path = Path(out) / RECORD
        check_place(path, out)
        content = dataclasses.asdict(self)
        write_json(path, {name: encodable(value) for name, value in content.items()})

    @classmethod
    def read(cls, out: str | Path) -> RunRecord:
        """The record of a folder.

        Raises
        ------
        ConfigError
            If the folder has none.
        DataError
            If it cannot be read, or a field has a damaged value.
        """
        path = Path(out) / RECORD
        if not os.path.isfile(path):
            raise ConfigError(f"{out}: no {RECORD}", "a folder that `mmh harmonize` wrote to", "Name another folder.")
        try:
            return TypeAdapter(cls).validate_python(read_object(path))
        except (OSError, ValueError) as error:
            problem = str(error)
            if isinstance(error, ValidationError):
                place = error.errors(include_url=False)[0]["loc"]
                problem = f"missing, unknown or damaged value of {place[0]}"
            remedy = "Remove it; the ledger keeps what was done."
            raise DataError(f"{path}: {problem}", "the record of a run", remedy) from error

    @property
    def started_at(self) -> datetime:
        """When the run started."""
        return _moment(self.started)

    @property
    def finished_at(self) -> datetime | None:
        """When the run ended, if it could still record this."""
        return None if self.finished is None else _moment(self.finished)


def _moment(text: str) -> datetime:
    moment = moment_of(text)
    assert moment is not None, "fields are checked when they are read"
    return moment


@dataclass(frozen=True)
class RunStatus:
    """Content of `mmh status`.

    Attributes
    ----------
    state:
        ``running``, ``finished``, ``failed`` (with a recorded reason) or ``interrupted`` (it was killed).
    counts:
        Status to number of images, over all runs into the folder.
    reasons:
        Reason to number of failed and refused images, the most frequent first.
    flagged:
        Images that were harmonized but should be looked at.
    done:
        Images that the latest run has finished, with any status.
    per_second:
        Images per second of the latest run, without skipped ones; None before its first image.
    seconds_left:
        Upper estimate at that rate; None unless the run is active.
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
        started = record.started_at.isoformat(" ", "seconds").replace("+00:00", " UTC")
        lines = [f"{self.state}, started {started}: {done}"]
        if record.failure:
            lines.append(f"stopped: {_printable(record.failure)}")
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        lines.append(f"in the folder: {counts or 'nothing yet'}; {self.flagged} to look at")
        for reason, count in self.reasons.items():
            lines.append(f"{count:>7} x {reason}")
        return "\n".join(lines)


def run_status(out: str | Path, now: datetime | None = None, locked: bool | None = None) -> RunStatus:
    """Progress of the latest run into a folder; can be called from another process during the run.

    Parameters
    ----------
    locked:
        Whether a run is writing there now; None to use the lock of the folder.

    Raises
    ------
    ConfigError
        If no run has written to the folder.
    DataError
        If its record or ledger cannot be read.
    """
    record = RunRecord.read(out)
    rows = current_rows(out)
    if locked is None:
        locked = is_locked(out)
    is_running = locked and record.finished is None
    recent: list[LedgerRow] = []
    latest = record.started_at
    for row in rows:
        finished_at = moment_of(row["finished"])
        if finished_at is not None and finished_at >= record.started_at:
            recent.append(row)
            latest = max(latest, finished_at)
    if record.finished_at is not None:
        end = record.finished_at
    elif is_running:
        end = now or utc_now()
    else:
        end = latest
    seconds = (end - record.started_at).total_seconds()
    worked_on = sum(row["status"] != Status.SKIPPED for row in recent)
    per_second = worked_on / seconds if worked_on and seconds > 0 else None
    return RunStatus(
        record=record,
        state=_state(record, is_running),
        counts=dict(Counter(row["status"] for row in rows)),
        reasons=count_reasons(rows),
        flagged=sum(bool(row["flags"]) for row in rows),
        done=len(recent),
        per_second=per_second,
        seconds_left=_seconds_left(record.images - len(recent), per_second) if is_running else None,
    )


def _seconds_left(images: int, per_second: float | None) -> float | None:
    """Seconds for that many images; None if the rate is unknown or the time is longer than :data:`LONGEST_S`."""
    if not per_second:
        return None
    seconds = images / per_second
    if not math.isfinite(seconds) or seconds > LONGEST_S:
        return None
    return max(0.0, seconds)


def count_reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Reason to number of images, the most frequent first, over rows of a ledger or a manifest.

    The name of the image's file is left out, so that equal reasons are counted together. Characters that a terminal
    could interpret as a command are left out, too.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        problem = problem_of(row)
        if problem is not None:
            path = row.get("source") or row.get("uri")
            counts[_printable(problem.without_path(path).text)] += 1
    return dict(counts.most_common())


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def utc_now() -> datetime:
    """Now, in UTC, to the millisecond."""
    moment = datetime.now(UTC)
    whole_milliseconds = moment.microsecond // 1000
    return moment.replace(microsecond=1000 * whole_milliseconds)


def _state(record: RunRecord, running: bool) -> str:
    if running:
        return "running"
    if record.finished is None:
        return "interrupted"
    return "failed" if record.failure else "finished"
