"""Chooses a folder with a short path for the sockets, logs and spilled objects of a cluster that is started here.

The path of a socket is limited to about a hundred bytes, and batch systems (Slurm) often set a longer TMPDIR.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from typing import Any

import ray

from mmh_ray.errors import ConfigError

log = logging.getLogger(__name__)

SHORT = ("/tmp", "/var/tmp")
"""Where a folder is made if Ray's default cannot be used."""

_MOST_BYTES = 103 if sys.platform == "darwin" else 107
_LONGEST = "/ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
"""The longest path that Ray appends to its temporary folder: 4194304 is the highest process number of Linux."""
_WRONG = "is too long or not ASCII, or cannot be written to"
"""Possible problems of a folder."""


def session_options() -> dict[str, Any]:
    """Options of ``ray.init`` for a cluster of this process; none if Ray's default folder can be used.

    Otherwise Ray uses a private folder with a short path, and spills objects to a folder in TMPDIR. Both folders are
    removed when the process ends.

    Raises
    ------
    ConfigError
        If no such folder can be made.
    """
    usual = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", SHORT[0]))
    if _fits_a_socket(usual) and _can_hold_files(usual):
        return {}
    session = _made_in(SHORT)
    if session is None:
        received = f"temporary folder {usual}, which {_WRONG}"
        expected = f"a folder with a path of at most {_MOST_BYTES - len(_LONGEST)} ASCII characters"
        raise ConfigError(received, expected, "Make one and name it: export RAY_TMPDIR=/short/path")
    options = {"_temp_dir": session}
    spilled = _made_in((usual,)) if usual.isascii() else None
    if spilled is not None:
        options["object_spilling_directory"] = spilled
    atexit.register(_remove, *options.values())
    log.info("temporary folder %s %s: Ray's sockets are in %s", usual, _WRONG, session)
    return options


def _fits_a_socket(folder: str) -> bool:
    """Whether sockets can be below a folder; Ray encodes their path in ASCII."""
    return folder.isascii() and len(folder + _LONGEST) <= _MOST_BYTES


def _can_hold_files(folder: str) -> bool:
    """Whether Ray can write there; its subfolder may already exist and belong to another user."""
    rays_folder = os.path.join(folder, "ray")
    parent = rays_folder if os.path.lexists(rays_folder) else folder
    attempt = _made_in((parent,))
    if attempt is None:
        return False
    os.rmdir(attempt)
    return True


def _made_in(parents: tuple[str, ...]) -> str | None:
    """Make a folder that only its owner can enter, in the first possible parent; None if there is none."""
    for parent in parents:
        if os.path.isabs(parent):
            with contextlib.suppress(OSError):
                return tempfile.mkdtemp(prefix="mmh-ray-", dir=parent)
    return None


def _remove(*folders: str) -> None:
    ray.shutdown()  # exit handlers run in reverse order: Ray's own would run after this one, and still write there
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
