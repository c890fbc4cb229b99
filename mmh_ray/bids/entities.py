"""Parses, checks and builds BIDS file names."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmh_ray.errors import ConfigError, DataError

EXTENSIONS = (".nii.gz", ".nii", ".json")
"""Endings of files whose names have entities, longest first."""

_ORDER = (
    "sub ses sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt part proc hemi space split "
    "recording chunk atlas seg scale res den label"
)
ORDER = tuple(_ORDER.split())
"""Entities in the order of the BIDS specification; unknown ones follow in alphabetical order, `desc` comes last."""

UNIFIED = "harmonized"
"""Label of `desc` for images in the unified domain."""
LONGEST_LABEL = 100
"""Most letters and digits of a target's name: a file name has at most 255 bytes."""

LONGEST_STEM = 255 - len("_before.jpg")
"""Most characters of an output's name without its ending; the pictures have the longest ending."""

_LABEL = re.compile("[A-Za-z0-9]+")  # ASCII only, without dots, slashes or spaces, so that no name can leave its folder
_REMEDY = "Rename the file, for example to sub-01_ses-1_T1w.nii.gz."


@dataclass(frozen=True)
class Entities:
    """Entities and suffix of a BIDS file name.

    Attributes
    ----------
    subject, session:
        Labels without `sub-` and `ses-`; session is None if the archive has no sessions.
    suffix:
        BIDS suffix, for images the sequence (T1w, T2w, FLAIR ...).
    others:
        All other entities as `(key, label)`, in BIDS order.
    """

    subject: str
    session: str | None
    suffix: str
    others: tuple[tuple[str, str], ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        """All entities in BIDS order, with `sub` and `ses`, without the suffix."""
        session = {} if self.session is None else {"ses": self.session}
        return {"sub": self.subject} | session | dict(self.others)

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the subject and, if there is one, the session, such as `("sub-01", "ses-1")`."""
        subject = f"sub-{self.subject}"
        if self.session is None:
            return (subject,)
        return subject, f"ses-{self.session}"

    @property
    def image_id(self) -> str:
        """File stem in BIDS order, such as `sub-01_ses-1_run-1_T1w`."""
        pairs = [f"{key}-{label}" for key, label in self.tags.items()]
        return "_".join([*pairs, self.suffix])

    def without(self, *keys: str) -> Entities:
        """A copy without these entities."""
        kept = tuple((key, label) for key, label in self.others if key not in keys)
        return dataclasses.replace(self, others=kept)


def parse(path: str | Path) -> Entities:
    """Entities of an image's file name; the folders above it are ignored.

    Raises
    ------
    DataError
        If the name does not end in `.nii` or `.nii.gz`, has no `sub-` entity or no suffix, has an entity twice, or has
        a label that is not alphanumeric.
    """
    name = Path(path).name
    if not name.endswith((".nii", ".nii.gz")):
        raise DataError(f"file name {name!r}", "one that ends in .nii or .nii.gz", _REMEDY)
    tags, suffix = split_name(name)
    subject = tags.pop("sub", None)
    if subject is None or not name.startswith("sub-"):
        raise DataError(f"file name {name!r}", "one that begins with sub-LABEL", _REMEDY)
    session = tags.pop("ses", None)
    return Entities(subject, session, suffix, others=tuple(tags.items()))


def archive_of(scan: str) -> str | None:
    """Root of a scan's archive, with a slash at its end; None if the scan's folders do not match its name.

    >>> archive_of("/study/sub-01/anat/sub-01_T1w.nii.gz")
    '/study/'
    """
    try:
        entities = parse(scan)
    except DataError:
        return None
    name = scan.rpartition("/")[2]
    below_root = "/".join([*entities.folders, "anat", name])
    return scan.removesuffix(below_root) if scan.endswith(f"/{below_root}") else None


def split_name(name: str) -> tuple[dict[str, str], str]:
    """Entities in BIDS order and the suffix of any BIDS file name, such as `acq-fast_T1w.json`.

    Raises
    ------
    DataError
        If the name is not a sequence of `key-label` pairs and a suffix, all alphanumeric, each key once.
    """
    extension = next((ending for ending in EXTENSIONS if name.endswith(ending)), "")
    *pairs, suffix = name.removesuffix(extension).split("_")
    tags: dict[str, str] = {}
    for pair in pairs:
        key, _, label = pair.partition("-")
        if not (_LABEL.fullmatch(key) and _LABEL.fullmatch(label)):
            raise DataError(f"{pair!r} in file name {name!r}", "key-label of letters and digits", _REMEDY)
        if key in tags:
            raise DataError(f"{key}- twice in file name {name!r}", "each entity once", _REMEDY)
        tags[key] = label
    if not _LABEL.fullmatch(suffix):
        received = f"suffix {suffix!r} in file name {name!r}"
        raise DataError(received, "a BIDS suffix such as T1w after the last _", _REMEDY)
    return dict(sorted(tags.items(), key=_rank)), suffix


def output_path(entities: Entities, space: str | None = None, desc: str = UNIFIED) -> PurePosixPath:
    """Path of a derivative, relative to the root of the derivatives.

    The `desc` of an input is kept in front: `desc-preproc` becomes `desc-preprocHarmonized`. `space` is the space of a
    template and replaces that of the input. So images that differ only in `space` get the same path, and a run fails
    all of them but the first. All other images have different paths.

    >>> str(output_path(parse("sub-01_ses-1_run-2_T1w.nii.gz")))
    'sub-01/ses-1/anat/sub-01_ses-1_run-2_desc-harmonized_T1w.nii.gz'

    Raises
    ------
    DataError
        If a part is not alphanumeric, which is possible for entities made in code, or the file name would be too long.
    """
    others = dict(entities.others)
    if space:
        others["space"] = space
    if "desc" in others:
        desc = others["desc"] + desc[:1].upper() + desc[1:]
    others["desc"] = desc
    in_order = tuple(sorted(others.items(), key=_rank))
    image_id = dataclasses.replace(entities, others=in_order).image_id
    split_name(image_id)  # refuses a name that could leave the folder
    if len(image_id) > LONGEST_STEM:
        received = f"an output named {image_id[:60]}... of {len(image_id)} characters"
        raise DataError(received, f"at most {LONGEST_STEM} characters", "Shorten the labels of the scan or the target.")
    return PurePosixPath(*entities.folders, "anat", f"{image_id}.nii.gz")


def desc_of(target: str | None) -> str:
    """Label of a derivative's `desc`: ``harmonized``, or for a target ``harmonizedSITE``, with its letters and digits.

    Accents are removed; all characters but A to Z and digits are left out, because BIDS allows no others.

    >>> desc_of("north shore")
    'harmonizedNorthShore'
    >>> desc_of("Orléans")
    'harmonizedOrleans'

    Raises
    ------
    ConfigError
        If nothing is left of the name, which would give the label of the unified domain, or if it is too long.
    """
    if target is None:
        return UNIFIED
    decomposed = unicodedata.normalize("NFKD", target)
    without_accents = "".join(character for character in decomposed if not unicodedata.combining(character))
    label = re.sub(r"[^A-Za-z0-9]", "", without_accents.title())
    if not 1 <= len(label) <= LONGEST_LABEL:
        received = f"target {target[:LONGEST_LABEL]!r}, with {len(label)} letters A to Z and digits in its name"
        remedy = "File names could not identify its images: train it under another name."
        raise ConfigError(received, f"a name with 1 to {LONGEST_LABEL} of them", remedy)
    return UNIFIED + label


def _rank(item: tuple[str, str]) -> tuple[int, str]:
    """Sort key of an entity: its position in BIDS order, then its name."""
    key = item[0]
    if key in ORDER:
        return ORDER.index(key), key
    is_last = key == "desc"
    return len(ORDER) + is_last, key
