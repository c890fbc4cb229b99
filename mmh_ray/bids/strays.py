"""Images where nobody looks for them, and files in formats that are not read: found all the same, and told."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import DirEntry
from pathlib import Path

from mmh_ray.bids.entities import split_name
from mmh_ray.bids.folders import leads_to_folder, relative_name, walk
from mmh_ray.bids.images import format_of, images_among, is_dicom, is_of_another_type, is_usable
from mmh_ray.bids.schema import Row, new_row, unusable
from mmh_ray.errors import DataError

PLACE = "sub-*/[ses-*/]anat/"
"""Where images lie that are used."""

_WITHOUT_ARCHIVE_IMAGES = frozenset(("derivatives", "sourcedata", "code", "stimuli", "phenotype"))
"""Folders beside the subjects in which BIDS keeps what is not the archive's own images."""
_NEARLY_A_SUBJECT = re.compile(r"sub[-_ ].+|sub\d.*|\d+", re.IGNORECASE)
_ONE_FILE = (".zarr", ".ngff", ".ds", ".mefd")
"""Endings of folders that are one recording, or one image of microscopy, in thousands of files."""


def stray_rows(
    entries: Iterable[DirEntry[str]], root: Path, inside: Sequence[str] = (), in_place: bool = False
) -> Iterator[Row]:
    """A row with its reason for every image among the files of one folder that cannot be used, or not there.

    Parameters
    ----------
    inside:
        Names of the folders between that of the subject or session and the files.
    in_place:
        Whether images belong there; then only those in formats that are not read are strays.
    """
    files = {entry.name: entry for entry in entries if not leads_to_folder(entry)}
    others = (name for name in files if not (in_place and is_usable(name)))
    for name, count in images_among(others):
        if not is_of_another_type(name, inside):
            yield _stray_row(files[name].path, root, count, in_place)


def stray_rows_below(folder: str, root: Path, inside: Sequence[str], lost: Callable[[str], Row]) -> Iterator[Row]:
    """:func:`stray_rows` of a folder and all below it; links are not followed.

    Parameters
    ----------
    lost:
        Makes the row of a folder that cannot be read.
    """
    unread: list[str] = []
    for current, entries in walk(folder, unread.append, _is_worth_a_look):
        below = Path(current).relative_to(folder).parts
        yield from stray_rows(entries, root, (*inside, *below))
    yield from map(lost, unread)


def is_nearly_a_subject(name: str) -> bool:
    """Whether a folder is probably meant as a subject's, such as `Sub-03`, `sub_03` or `03`, but is not called `sub-LABEL`."""
    return not name.startswith("sub-") and bool(_NEARLY_A_SUBJECT.fullmatch(name))


def images_outside(entries: Iterable[DirEntry[str]], root: Path, unread: Callable[[str], object]) -> list[str]:
    """Relative paths of images that lie neither in a folder of a subject nor where BIDS keeps other things.

    The first of every folder beside the subjects comes first. Links to folders are not followed.
    """
    by_folder: list[list[str]] = []
    files = []
    for entry in entries:
        if not leads_to_folder(entry):
            files.append(entry)
            continue
        is_known = entry.name.startswith("sub-") or entry.name in _WITHOUT_ARCHIVE_IMAGES
        if not is_known and not is_nearly_a_subject(entry.name) and not entry.is_symlink():
            found = []
            for current, inner in walk(entry.path, unread, _is_worth_a_look):
                folders = Path(current).relative_to(root).parts
                found += _images_of([one for one in inner if not leads_to_folder(one)], root, folders)
            by_folder.append(found)
    firsts = [found[0] for found in by_folder if found]
    rest = [path for found in by_folder for path in found[1:]]
    return _images_of(files, root, ()) + firsts + rest


def _images_of(files: list[DirEntry[str]], root: Path, folders: Sequence[str]) -> list[str]:
    paths = {entry.name: entry.path for entry in files}
    return [
        relative_name(paths[name], root) for name, _ in images_among(paths) if not is_of_another_type(name, folders)
    ]


def _is_worth_a_look(folder: str) -> bool:
    return not folder.lower().endswith(_ONE_FILE)


def _stray_row(path: str, root: Path, count: int, in_place: bool) -> Row:
    relative = relative_name(path, root)
    row = new_row(path, relative) | _ids(relative)
    name = os.path.basename(path)
    if is_dicom(name):
        files = "a DICOM file" if count == 1 else f"the first of {count} DICOM files"
        return unusable(row, DataError(f"{relative}: {files}", f"NIfTI in {PLACE}", "Convert them with dcm2niix."))
    if not in_place:
        remedy = "Move it there, or out of the folders of subjects."
        return unusable(row, DataError(f"{relative}: an image in another place", f"it in {PLACE}", remedy))
    ending = format_of(name)
    what = f"an image in {ending}" if ending else "an image without an ending"
    remedy = "Convert it, for example with mri_convert or dcm2niix, or rename it if it is NIfTI."
    return unusable(row, DataError(f"{relative}: {what}", ".nii or .nii.gz", remedy))


def _ids(relative: str) -> Row:
    """Subject, session and sequence as far as folders and name tell them."""
    first, *others = relative.split("/")
    found: Row = {}
    if first.startswith("sub-"):
        found["subject"] = first.removeprefix("sub-")
        session = next((name for name in others[:-1] if name.startswith("ses-")), None)
        found["session"] = session.removeprefix("ses-") if session else None
    with contextlib.suppress(DataError):
        found["sequence"] = split_name(others[-1].partition(".")[0])[1] if others else None
    return found
