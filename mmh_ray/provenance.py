"""Computes content hashes and the code version, and writes files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmh_ray import __version__
from mmh_ray.errors import DataError, MMHError
from mmh_ray.files import is_inside, open_regular

log = logging.getLogger(__name__)

PARTIAL = ".partial-"
"""Prefix of the names of files that are still being written."""


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a regular file's bytes, as 64 hex digits; UnusableFileError for anything else."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_version() -> str:
    """Package version, with the git commit when run from a checkout (`+dirty` marks local changes).

    The installed version may name a commit, too, but that of the installation, which need not be the current one.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+dirty", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    release = __version__.partition("+")[0]
    return f"{release}+g{described}" if described else __version__


def container() -> dict[str, str] | None:
    """The container of this process, with the keys of BIDS (`Type`, `Tag`); None outside a container or if unknown.

    Apptainer sets a variable with its file; images built from `configs/cluster/` set MMH_IMAGE.
    """
    image = os.environ.get("MMH_IMAGE")
    apptainer_file = os.environ.get("APPTAINER_CONTAINER")
    if apptainer_file:
        return {"Type": "apptainer", "Tag": image or Path(apptainer_file).name}
    return {"Type": "docker", "Tag": image} if image else None


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffixes; rename it to ``path`` only if the block succeeds.

    The content is written to disk before the renaming, so that a power cut leaves no empty file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix="".join(path.suffixes[-2:]), dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def check_place(path: str | Path, root: str | Path, kind: type[MMHError] = DataError) -> None:
    """Raise an error if a file to be written or removed lies outside ``root``, because a folder in its path is a link.

    ``root`` may be a link, and so may the file: then the link is replaced or removed, and its target stays. This does
    not protect against links that are created after the check.
    """
    folder = Path(path).parent
    if not is_inside(folder, root):
        received = f"{path}: a link on the way leads out of {root}, to {_end_of(folder)}"
        remedy = "Remove the link, or replace it by the folder that it leads to."
        raise kind(received, "a place inside that folder", remedy)


def _end_of(folder: Path) -> str:
    try:
        return str(folder.resolve())
    except (OSError, RuntimeError):
        return "itself"


def remove_partial(folder: str | Path) -> None:
    """Remove half-written files that killed processes left below a folder.

    Call it only while no other run can be writing there. Links to folders are not followed. A file that cannot be
    removed causes only a warning, because it is no result.
    """
    for left in Path(folder).rglob(f"{PARTIAL}*"):
        if left.is_symlink() or not left.is_dir():
            try:
                left.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s: half-written, and cannot be removed (%s)", left, error)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with whole_file(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


_UMASK_READ = threading.Lock()


@cache
def _umask() -> int:
    with _UMASK_READ:  # reading the umask sets it: two threads at once could leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask
