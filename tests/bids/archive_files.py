"""Builds archives for the tests of this folder: empty image files, tables and special files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from mmh_ray.bids.manifest import find_images

POINTERS = {
    "annex": "/annex/objects/MD5E-s4242--d41d8cd98f00b204e9800998ecf8427e.tsv\n",
    "link as text": "../.git/annex/objects/Xx/0q/MD5E-s4242--d41d.tsv/MD5E-s4242--d41d.tsv",
    "lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4242\n",
}
"""What lies in the place of a file whose content was not fetched."""

SPECIAL = ("dangling", "loop", "folder", "pipe", "socket", "zeros", "link out")
"""What :func:`put_special` makes."""


def put(path: Path, content: str | bytes | dict[str, Any] = "") -> Path:
    """Write a file, and the folders above it; a dictionary as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_special(path: Path, kind: str) -> Path:
    """Make something that is not a regular file of the archive, which must be in a folder below the test's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "dangling":
        path.symlink_to(".git/annex/objects/absent")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)  # bind() would want a short path
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    else:
        assert kind == "link out", kind
        path.symlink_to("/etc/hostname")
    return path


def image(root: Path, stem: str) -> Path:
    """An empty file at the place of its name; no voxels are read in these tests."""
    folders = [part for part in stem.split("_") if part.startswith(("sub-", "ses-"))]
    return put(root.joinpath(*folders, "anat", f"{stem}.nii.gz"))


def people(root: Path, *lines: str) -> Path:
    """A participants.tsv from cells separated by spaces; adds a header if ``lines`` have none."""
    rows = ["\t".join(line.split()) for line in ("participant_id site age sex", *lines)]
    return put(root / "participants.tsv", "\n".join(rows))


def by_id(root: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Rows of an archive by `image_id`."""
    return {row["image_id"]: row for row in find_images(root, **options)}
