"""Recognises images, and which of them are anatomical, only by file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

USABLE = (".nii", ".nii.gz")
"""Endings of the files that can be read, in lower case."""

_FORMATS = "nii img hdr mgz mgh mnc nrrd nhdr mha mhd dcm dicom ima brik head par rec"
_PACKED = "gz bz2 xz zst lz4 z zip"
_UNFINISHED = "part partial tmp bak old orig crdownload filepart download"
_IMAGE = re.compile(
    rf"\.({_FORMATS.replace(' ', '|')})(\.({_PACKED.replace(' ', '|')}))?(~| .*|\.({_UNFINISHED.replace(' ', '|')}))?",
    re.IGNORECASE,
)
_DICOM = (".dcm", ".dicom", ".ima")
_PAIRED = (".hdr", ".img", ".head", ".brik", ".par", ".rec")
"""Endings of formats with header and voxels in two files."""

_ANATOMICAL = (
    "T1w T2w PDw T2starw FLAIR inplaneT1 inplaneT2 PDT2 angio T2star FLASH PD VFA IRT1 MP2RAGE MPM MTS MTR MEGRE MESE "
    "T1map T2map T2starmap R1map R2map R2starmap PDmap MTRmap MTsat UNIT1 T1rho MWFmap MTVmap Chimap S0map M0map"
)
_ANAT_SUFFIX = re.compile(rf"_({_ANATOMICAL.replace(' ', '|')})(?![A-Za-z0-9])", re.IGNORECASE)
_TEXT = "json tsv csv txt md log xml yaml yml html pdf png jpg jpeg gif svg bval bvec md5 sha1 sha256 sha512 xlsx"
_IS_TEXT = re.compile(rf"\.({_TEXT.replace(' ', '|')})(\.gz)?$", re.IGNORECASE)

OTHER_TYPES = frozenset(
    ("func", "dwi", "fmap", "perf", "pet", "meg", "eeg", "ieeg", "beh", "micr", "nirs", "motion", "mrs", "emg")
)
"""BIDS folders with other data than anatomical images."""
_OTHER = (
    "bold cbv sbref phase dwi asl m0scan epi fieldmap phasediff phase1 phase2 magnitude magnitude1 magnitude2 pet "
    "TB1DAM TB1EPI TB1AFI TB1TFL TB1RFM RB1COR TB1SRGE TB1map RB1map mrsi svs unloc mrsref meg eeg ieeg nirs motion"
)
_OTHER_SUFFIX = re.compile(rf"(^|_)({_OTHER.replace(' ', '|')})\.[A-Za-z0-9.]+$", re.IGNORECASE)


def is_image(name: str) -> bool:
    """Whether the name looks like an image of any format, also if compressed or partly copied.

    >>> [is_image(name) for name in ("scan.NII.GZ", "sub-1_T1w.mgz", "sub-1_T1w", "sub-1_T1w.json")]
    [True, True, True, False]
    """
    if _IS_TEXT.search(name):
        return False
    return bool(_image_ending(name) or _ANAT_SUFFIX.search(name))


def _image_ending(name: str) -> re.Match[str] | None:
    """Match of an image's ending that reaches the end of the name."""
    return next((match for match in _IMAGE.finditer(name) if match.end() == len(name)), None)


def is_usable(name: str) -> bool:
    """Whether the ending is one that can be read, in upper or lower case."""
    return name.lower().endswith(USABLE)


def is_dicom(name: str) -> bool:
    """Whether it is a DICOM file, usually one of many of a series."""
    return name.lower().endswith(_DICOM)


def is_of_another_type(name: str, folders: Iterable[str]) -> bool:
    """Whether an image below these folders is not anatomical: functional, diffusion, a field map ..."""
    if _ANAT_SUFFIX.search(name):
        return False
    in_its_folder = any(folder.casefold() in OTHER_TYPES for folder in folders)
    return in_its_folder or bool(_OTHER_SUFFIX.search(name))


def format_of(name: str) -> str:
    """The ending of the format, such as `.mgz` or `.nii.bz2`; empty if there is none."""
    ending = _image_ending(name)
    return ending.group() if ending else ""


def images_among(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that look like images, each with the number of files that it represents.

    The first file of a pair represents both; the first DICOM file represents all DICOM files.
    """
    firsts: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name in names:
        if not is_image(name):
            continue
        key = _same_image(name)
        first = firsts.setdefault(key, name)
        counts[first] = counts.get(first, 0) + 1
    return list(counts.items())


def _same_image(name: str) -> str:
    """A key that the files of one image share."""
    if is_dicom(name):
        return "DICOM"
    plain = name[:-3] if name.lower().endswith(".gz") else name
    stem, ending = os.path.splitext(plain)
    return f"{stem} in two files" if ending.lower() in _PAIRED else name
