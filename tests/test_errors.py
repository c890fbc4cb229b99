"""Every error of an image says what was received, what was expected and what to do."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from mmh_ray.errors import MOST_SHOWN, DataError, RefusedError, data_error

pytestmark = pytest.mark.fast

SCAN = "/data/sub-01_T1w.nii.gz"


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), SCAN),
            f"{SCAN}: Permission denied; expected the right",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), f"{SCAN}: No space left on device; expected room for"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/mask.nii"),
            "/mask.nii: No such file; expected the file that",
        ),
        (OSError(errno.EIO, os.strerror(errno.EIO)), f"{SCAN}: Input/output error; expected a file that can be read"),
        (OSError("a strange one"), f"{SCAN}: a strange one; expected a file that can be read"),
        (MemoryError("not even one slab"), f"{SCAN}: MemoryError: not even one slab; expected enough memory"),
        (ValueError("shapes differ"), f"{SCAN}: ValueError: shapes differ; expected no error"),
        (RefusedError("noise", "a head", "Look at it."), "noise; expected a head. Look at it."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_exception_has_all_three(error: Exception, start: str) -> None:
    found = data_error(error, SCAN)
    assert str(found).startswith(start)
    assert all((found.received, found.expected, found.remedy))


def test_what_is_quoted_is_never_long() -> None:
    error = DataError("a name: " + "x" * 10**6 + ": too long", "y" * MOST_SHOWN, "Shorten it.")
    assert len(error.received) == MOST_SHOWN
    assert error.received.startswith("a name: xxx")
    assert error.received.endswith("xxx: too long")
    assert error.expected == "y" * MOST_SHOWN
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
