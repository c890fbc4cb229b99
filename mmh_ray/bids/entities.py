"""BIDS file names: taken apart, checked, and put together again."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmh_ray.errors import ConfigError, DataError

EXTENSIONS = (".nii.gz", ".nii", ".json")
"""Endings that carry entities here, longest first."""

_ORDER = (
    "sub ses sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt part proc hemi space split "
    "recording chunk atlas seg scale res den label"
)
ORDER = tuple(_ORDER.split())
"""Entities in the order of the BIDS specification; unknown ones follow by name, `desc` comes last."""

UNIFIED = "harmonized"
"""Label of the `desc` of an image in the unified domain."""
LONGEST_LABEL = 100
"""Most letters and digits of a target's name: a file's name has 255 bytes in all."""

LONGEST_STEM = 255 - len("_before.jpg")
"""Most characters of an output's name without its endings: those of its pictures are the longest."""

_LABEL = re.compile("[A-Za-z0-9]+")  # ASCII only: no dots, slashes or spaces, so that no name can leave its folder
_REMEDY = "Rename the file, for example to sub-01_ses-1_T1w.nii.gz."


@dataclass(frozen=True)
class Entities:
    """What the name of a BIDS file says.

    Attributes
    ----------
    subject, session:
        Labels without `sub-` and `ses-`; session is None where the archive has none.
    suffix:
        BIDS suffix, for images the sequence (T1w, T2w, FLAIR ...).
    others:
        Every other entity as `(key, label)`, in BIDS order whatever their order in the file name.
    """

    subject: str
    session: str | None
    suffix: str
    others: tuple[tuple[str, str], ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        """All entities in BIDS order, `sub` and `ses` included, suffix not."""
        session = {} if self.session is None else {"ses": self.session}
        return {"sub": self.subject} | session | dict(self.others)

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the subject and, if there is one, the session: `("sub-01", "ses-1")`."""
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
        """The same without these other entities."""
        kept = tuple((key, label) for key, label in self.others if key not in keys)
        return dataclasses.replace(self, others=kept)


def parse(path: str | Path) -> Entities:
    """Entities of an image's file name; the folders above it are not looked at.

    Raises
    ------
    DataError
        No `sub-` entity, no suffix, an entity given twice, a label that is not alphanumeric, not `.nii` or `.nii.gz`.
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
    """Root of the archive that a scan lies in, with a slash at its end; None where its folders are not those that its name tells.

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
        If the name is not made of `key-label` pairs and a suffix, all alphanumeric, each key once.
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


def output_path(entities: Entities, space: str | None = None, desc: str = "harmonized") -> PurePosixPath:
    """Path of a derivative, relative to the derivatives' root. Different images never share one, but for those that `space` makes alike.

    An input that carries a `desc` of its own keeps it in front: `desc-preproc` becomes `desc-preprocHarmonized`.
    `space` names a template's space, and replaces the input's own. Of images that differ in `space` alone a run fails
    all but the first.

    >>> str(output_path(parse("sub-01_ses-1_run-2_T1w.nii.gz")))
    'sub-01/ses-1/anat/sub-01_ses-1_run-2_desc-harmonized_T1w.nii.gz'

    Raises
    ------
    DataError
        If any part is not alphanumeric, as entities made by hand may be, or the name would be too long for a file.
    """
    others = dict(entities.others)
    if space:
        others["space"] = space
    if "desc" in others:
        desc = others["desc"] + desc[:1].upper() + desc[1:]
    others["desc"] = desc
    in_order = tuple(sorted(others.items(), key=_rank))
    image_id = dataclasses.replace(entities, others=in_order).image_id
    split_name(image_id)  # refuses what could leave the folder
    if len(image_id) > LONGEST_STEM:
        received = f"an output named {image_id[:60]}... of {len(image_id)} characters"
        raise DataError(received, f"at most {LONGEST_STEM} characters", "Shorten the labels of the scan or the target.")
    return PurePosixPath(*entities.folders, "anat", f"{image_id}.nii.gz")


def desc_of(target: str | None) -> str:
    """Label of a derivative's `desc`: ``harmonized``, or ``harmonizedSITE`` with the letters and digits of the target's name.

    Accents are left out, in whichever way Unicode writes them; no other letter has a place in a BIDS name.

    >>> desc_of("north shore")
    'harmonizedNorthShore'
    >>> desc_of("Orléans")
    'harmonizedOrleans'

    Raises
    ------
    ConfigError
        If nothing is left of the name, which would make it the label of the unified domain, or too much for a file's name.
    """
    if target is None:
        return UNIFIED
    taken_apart = unicodedata.normalize("NFKD", target)
    without_accents = "".join(sign for sign in taken_apart if not unicodedata.combining(sign))
    label = re.sub(r"[^A-Za-z0-9]", "", without_accents.title())
    if not 1 <= len(label) <= LONGEST_LABEL:
        received = f"target {target[:LONGEST_LABEL]!r}, with {len(label)} letters A to Z and digits in its name"
        remedy = "Its images could not be told from others by their names: train it under another name."
        raise ConfigError(received, f"a name with 1 to {LONGEST_LABEL} of them", remedy)
    return UNIFIED + label


def _rank(item: tuple[str, str]) -> tuple[int, str]:
    """Place of an entity in the order of BIDS, then its name."""
    key = item[0]
    if key in ORDER:
        return ORDER.index(key), key
    is_last = key == "desc"
    return len(ORDER) + is_last, key
