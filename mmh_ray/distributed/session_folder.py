"""Where Ray keeps the sockets, logs and spilled objects of a cluster that is started here: a folder with a short path.

The path of a socket has hardly more than a hundred bytes; batch systems (Slurm) give every job a TMPDIR that is longer.
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
"""Where a folder is made if Ray's own place will not do."""

_MOST_BYTES = 103 if sys.platform == "darwin" else 107
_LONGEST = "/ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
"""What Ray appends to its temporary folder at most: 4194304 is the highest process number of Linux."""
_WRONG = "is too long or not ASCII, or cannot be written to"
"""What may be wrong with a folder."""


def session_options() -> dict[str, Any]:
    """Options of ``ray.init`` for a cluster of this process's own: none where Ray's own choice will do.

    Otherwise its files lie in a private folder with a short path. Objects that find no room in memory lie where TMPDIR
    says. Both folders are removed when the process ends.

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
    log.info("temporary folder %s %s: Ray's sockets lie in %s", usual, _WRONG, session)
    return options


def _fits_a_socket(folder: str) -> bool:
    """Whether a socket's path can begin with a folder's; Ray writes it down in ASCII."""
    return folder.isascii() and len(folder + _LONGEST) <= _MOST_BYTES


def _can_hold_files(folder: str) -> bool:
    """Whether Ray can write there; its own folder may be there already, and another user's."""
    rays_folder = os.path.join(folder, "ray")
    parent = rays_folder if os.path.lexists(rays_folder) else folder
    attempt = _made_in((parent,))
    if attempt is None:
        return False
    os.rmdir(attempt)
    return True


def _made_in(parents: tuple[str, ...]) -> str | None:
    """A new folder that only its owner can enter, in the first parent where one can be made."""
    for parent in parents:
        if os.path.isabs(parent):
            with contextlib.suppress(OSError):
                return tempfile.mkdtemp(prefix="mmh-ray-", dir=parent)
    return None


def _remove(*folders: str) -> None:
    ray.shutdown()  # what runs at exit runs in reverse: Ray's own would come after this, and still write there
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
