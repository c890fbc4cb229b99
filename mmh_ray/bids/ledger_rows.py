"""Checks the rows of a ledger as they are read: a damaged value is left out, and the rest of its row is kept."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, cast

from mmh_ray.bids.rows import LEDGER_STATUSES, LedgerRow

log = logging.getLogger(__name__)

MOST_SECONDS = 10**10
"""Most seconds for an image, some 300 years; more is damaged. The column cannot store integers over 2**53."""


def is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can encode."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can contain
        return False
    return True


def encodable(value: Any) -> Any:
    """A text that UTF-8 can encode, with undecodable bytes of a file name as escapes; other values are unchanged."""
    if not isinstance(value, str):
        return value
    return value.encode(errors="backslashreplace").decode()


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; bools are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def moment_of(value: Any) -> datetime | None:
    """The moment of an ISO 8601 text with a time zone; None for anything else."""
    if not is_text(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    has_time_zone = moment.utcoffset() is not None
    return moment if has_time_zone else None


def is_moment(value: Any) -> bool:
    """Whether a value is an ISO 8601 text with a time zone."""
    return moment_of(value) is not None


def is_place(value: Any) -> bool:
    """Whether a value is a relative path that stays in its folder."""
    if not is_text(value) or not value or "\0" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


def usable_rows(rows: Iterable[Any], where: str) -> Iterator[LedgerRow]:
    """Rows with at least an image and a status, completed to all columns; unusable values become None.

    Parameters
    ----------
    rows:
        Values read from a file, of any type.
    where:
        File name for the warnings, which count what was left out.
    """
    rows_left_out = 0
    values_left_out: Counter[str] = Counter()
    for row in rows:
        if not _is_row(row):
            rows_left_out += 1
            continue
        usable: dict[str, Any] = {}
        for name, is_usable in COLUMNS.items():
            value = row.get(name)
            if value is not None and not is_usable(value):
                values_left_out[name] += 1
                value = None
            usable[name] = value
        yield cast(LedgerRow, usable)
    if rows_left_out:
        log.warning("%s: %d half-written or damaged rows are left out", where, rows_left_out)
    for name, count in sorted(values_left_out.items()):
        log.warning("%s: %d rows have a damaged value of `%s`, which is left out", where, count, name)


def _is_row(value: Any) -> bool:
    """Whether a value is a mapping with the name of an image and a status."""
    if not isinstance(value, Mapping):
        return False
    return _is_name(value.get("image_id")) and value.get("status") in LEDGER_STATUSES


def _is_name(value: Any) -> bool:
    return is_text(value) and value != ""


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _is_duration(value: Any) -> bool:
    return is_number(value) and 0 <= value <= MOST_SECONDS


COLUMNS: dict[str, Callable[[Any], bool]] = {
    "image_id": _is_name,
    "target": is_text,
    "site": is_text,
    "sequence": is_text,
    "source": is_text,
    "output": is_place,
    "status": is_text,
    "reason": is_text,
    "expected": is_text,
    "remedy": is_text,
    "flags": _is_list_of_texts,
    "seconds": _is_duration,
    "finished": is_moment,
    "input_sha256": is_text,
    "input_state": is_text,
    "model_hash": is_text,
    "settings_hash": is_text,
}
"""Columns of a ledger, and the check of their values."""
