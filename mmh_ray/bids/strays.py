"""Finds and reports images in unexpected places or in formats that cannot be read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import DirEntry
from pathlib import Path

from mmh_ray.bids.entities import split_name
from mmh_ray.bids.folders import leads_to_folder, relative_name, walk
from mmh_ray.bids.images import format_of, images_among, is_dicom, is_of_another_type, is_usable
from mmh_ray.bids.rows import ManifestRow
from mmh_ray.bids.schema import mark_unusable, new_row
from mmh_ray.errors import DataError

PLACE = "sub-*/[ses-*/]anat/"
"""Place of usable images."""

_WITHOUT_ARCHIVE_IMAGES = frozenset(("derivatives", "sourcedata", "code", "stimuli", "phenotype"))
"""BIDS folders beside the subjects that do not contain the archive's own images."""
_NEARLY_A_SUBJECT = re.compile(r"sub[-_ ].+|sub\d.*|\d+", re.IGNORECASE)
_ONE_FILE = (".zarr", ".ngff", ".ds", ".mefd")
"""Endings of folders that are a single recording or microscopy image in thousands of files."""


def stray_rows(
    entries: Iterable[DirEntry[str]], root: Path, inside: Sequence[str] = (), in_place: bool = False
) -> Iterator[ManifestRow]:
    """Rows with the reason for images of one folder that cannot be used: wrong place or unreadable format.

    Parameters
    ----------
    inside:
        Names of the folders between the subject's or session's folder and the files.
    in_place:
        Whether images belong in this folder; then only those in unreadable formats are strays.
    """
    strays = [entry for entry in entries if not (in_place and is_usable(entry.name))]
    for path, count in _images_of(strays, inside):
        yield _stray_row(path, root, count, in_place)


def stray_rows_below(
    folder: str, root: Path, inside: Sequence[str], unreadable_row: Callable[[str], ManifestRow]
) -> Iterator[ManifestRow]:
    """:func:`stray_rows` for a folder and all folders below it; links are not followed.

    Parameters
    ----------
    unreadable_row:
        Makes the row of a folder that cannot be read.
    """
    unread: list[str] = []
    for current, entries in walk(folder, unread.append, _may_have_images):
        below = Path(current).relative_to(folder).parts
        yield from stray_rows(entries, root, (*inside, *below))
    for path in unread:
        yield unreadable_row(path)


def is_nearly_a_subject(name: str) -> bool:
    """Whether a folder is probably a subject's with a wrong name, such as `Sub-03`, `sub_03` or `03`."""
    return not name.startswith("sub-") and bool(_NEARLY_A_SUBJECT.fullmatch(name))


def images_outside(entries: Sequence[DirEntry[str]], root: Path, unread: Callable[[str], object]) -> list[str]:
    """Relative paths of images that are neither in a subject's folder nor in a folder that BIDS defines for other data.

    The first image of every folder comes first. Links to folders are not followed.
    """
    top = [relative_name(path, root) for path, _ in _images_of(entries, ())]
    firsts: list[str] = []
    others: list[str] = []
    for entry in entries:
        if leads_to_folder(entry) and _may_hide_images(entry):
            images = _images_below(entry.path, root, unread)
            firsts += images[:1]
            others += images[1:]
    return top + firsts + others


def _may_hide_images(folder: DirEntry[str]) -> bool:
    """Whether a folder beside the subjects is unknown to BIDS, and not a link."""
    is_known = folder.name.startswith("sub-") or folder.name in _WITHOUT_ARCHIVE_IMAGES
    return not is_known and not is_nearly_a_subject(folder.name) and not folder.is_symlink()


def _images_below(folder: str, root: Path, unread: Callable[[str], object]) -> list[str]:
    """Relative paths of the images in a folder and all folders below it."""
    images: list[str] = []
    for current, entries in walk(folder, unread, _may_have_images):
        folders = Path(current).relative_to(root).parts
        images += [relative_name(path, root) for path, _ in _images_of(entries, folders)]
    return images


def _images_of(entries: Iterable[DirEntry[str]], folders: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Paths of the anatomical images in one folder, each with the number of files that it represents."""
    paths = {entry.name: entry.path for entry in entries if not leads_to_folder(entry)}
    for name, count in images_among(paths):
        if not is_of_another_type(name, folders):
            yield paths[name], count


def _may_have_images(folder: str) -> bool:
    return not folder.lower().endswith(_ONE_FILE)


def _stray_row(path: str, root: Path, count: int, in_place: bool) -> ManifestRow:
    relative = relative_name(path, root)
    row = new_row(path, relative)
    _set_ids(row, relative)
    return mark_unusable(row, _why_stray(relative, count, in_place))


def _why_stray(relative: str, count: int, in_place: bool) -> DataError:
    name = relative.rpartition("/")[2]
    if is_dicom(name):
        files = "a DICOM file" if count == 1 else f"the first of {count} DICOM files"
        return DataError(f"{relative}: {files}", f"NIfTI in {PLACE}", "Convert them with dcm2niix.")
    if not in_place:
        remedy = "Move it there, or out of the folders of subjects."
        return DataError(f"{relative}: an image in another place", f"it in {PLACE}", remedy)
    ending = format_of(name)
    what = f"an image in {ending}" if ending else "an image without an ending"
    remedy = "Convert it, for example with mri_convert or dcm2niix, or rename it if it is NIfTI."
    return DataError(f"{relative}: {what}", ".nii or .nii.gz", remedy)


def _set_ids(row: ManifestRow, relative: str) -> None:
    """Set subject, session and sequence as far as folders and file name show them."""
    *folders, name = relative.split("/")
    if folders and folders[0].startswith("sub-"):
        row["subject"] = folders[0].removeprefix("sub-")
        for folder in folders[1:]:
            if folder.startswith("ses-"):
                row["session"] = folder.removeprefix("ses-")
                break
    if folders:
        with contextlib.suppress(DataError):
            _, row["sequence"] = split_name(name.partition(".")[0])
