"""Values of a ledger's row as they are read: each is what its column holds, or it is left out. A damaged one costs only itself."""

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
"""Seconds that an image can have taken, some 300 years: a row with more is damaged. The column holds no integer beyond 2**53."""


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be written down in UTF-8."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which JSON can hold
        return False
    return True


def encodable(value: Any) -> Any:
    """A text as UTF-8 can hold it, with the odd bytes of a name in another encoding as escapes; any other value itself."""
    if not isinstance(value, str):
        return value
    return value.encode(errors="backslashreplace").decode()


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def moment_of(value: Any) -> datetime | None:
    """The moment that an ISO 8601 text with a time zone names; None for anything else."""
    if not is_text(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    has_time_zone = moment.utcoffset() is not None
    return moment if has_time_zone else None


def is_place(value: Any) -> bool:
    """Whether a value is a relative path that does not leave its folder."""
    if not is_text(value) or not value or "\0" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


def usable_rows(found: Iterable[Any], where: str) -> Iterator[LedgerRow]:
    """Rows of which the image and its status are known, with every column; a value that its column cannot hold is None.

    Parameters
    ----------
    found:
        What was read, whatever that is.
    where:
        File for the warning, which counts what was left out.
    """
    rows_left_out = 0
    values_left_out: Counter[str] = Counter()
    for row in found:
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
    """Whether a value has at least the name of an image and a status."""
    if not isinstance(value, Mapping):
        return False
    return _is_name(value.get("image_id")) and value.get("status") in LEDGER_STATUSES


def _is_name(value: Any) -> bool:
    return is_text(value) and value != ""


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _is_duration(value: Any) -> bool:
    return is_number(value) and 0 <= value <= MOST_SECONDS


def _is_moment(value: Any) -> bool:
    return moment_of(value) is not None


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
    "finished": _is_moment,
    "input_sha256": is_text,
    "input_state": is_text,
    "model_hash": is_text,
    "settings_hash": is_text,
}
"""Columns of a ledger, and what tells whether a value may stand there."""
