"""Matches brain masks in an archive's derivatives to scans by their entities."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mmh_ray.bids.entities import Entities, parse
from mmh_ray.bids.folders import check_entry, is_folder, walk
from mmh_ray.bids.text import Findings, printable
from mmh_ray.errors import DataError
from mmh_ray.files import is_inside

log = logging.getLogger(__name__)

ENDINGS = ("_desc-brain_mask.nii.gz", "_desc-brain_mask.nii")


class BrainMasks:
    """Paths of `*_desc-brain_mask.nii[.gz]` below derivatives/ by their other entities; `mod-T1w` limits to a sequence.

    Masks that are left out are listed in warnings. A mask that is not a regular file, such as a broken link, is kept as
    a problem: its image is unusable, because the user meant it to be harmonized with this mask.
    """

    def __init__(self, root: Path) -> None:
        self._paths: dict[frozenset[tuple[str, str]], str] = {}
        self._problems: dict[str, DataError] = {}
        self._findings = Findings()
        for entry in files_of_derivatives(root, ENDINGS, self._findings):
            self._add(entry, root)
        self._findings.warn()

    def of(self, entities: Entities) -> str | None:
        """Path of the mask for an image; None if there is none.

        Raises
        ------
        DataError
            If the mask is not a regular file.
        """
        tags = frozenset(entities.without("desc").tags.items())
        tags_with_sequence = tags | {("mod", entities.suffix)}
        path = self._paths.get(tags_with_sequence) or self._paths.get(tags)
        if path in self._problems:
            raise self._problems[path]
        return path

    def _add(self, entry: os.DirEntry[str], root: Path) -> None:
        path = entry.path
        try:
            tags = frozenset(parse(path).without("desc").tags.items())
        except DataError as error:
            log.warning("%s is left out: %s", printable(path), error)
            return
        if entry.is_symlink() and not is_inside(path, root):
            self._findings.note("a brain mask left out, a link out of the archive", path)
        elif printable(path) != path:
            self._findings.note("a brain mask left out, its path is not UTF-8", path)
        elif self._paths.setdefault(tags, path) != path:
            is_of_functional_image = any(key == "task" for key, _ in tags)
            if not is_of_functional_image:  # which is never harmonized
                self._findings.note("a second brain mask with the same entities, left out", path)
        else:
            try:
                check_entry(entry, root, f"brain mask {path}")
            except DataError as error:
                self._problems[path] = error


def files_of_derivatives(root: Path, endings: tuple[str, ...], findings: Findings) -> list[os.DirEntry[str]]:
    """Entries below `derivatives/` whose names have one of these endings, ordered by path, without hidden folders.

    Links to folders are not followed. A link in place of a whole pipeline, or an unreadable folder, causes a warning.
    """
    top = root / "derivatives"
    if not os.path.lexists(top):
        return []
    unread = "a folder of derivatives that cannot be read"
    not_followed = "a link in the place of derivatives, which is not followed"
    if not is_inside(top, root):
        findings.note(not_followed, os.fspath(top))
        return []
    files = []
    for folder, entries in walk(top, lambda path: findings.note(unread, path)):
        files += [entry for entry in entries if entry.name.endswith(endings)]
        if folder == os.fspath(top):
            links = [entry.path for entry in entries if entry.is_symlink() and is_folder(entry)]
            findings.note(not_followed, links)
    return files
