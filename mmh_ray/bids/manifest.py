"""The manifest: one row per image of a BIDS archive, from names, tables and sidecars; no voxel is read here."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mmh_ray.bids.entities import Entities, parse, split_name
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.provenance import whole_file
from mmh_ray.tables import read_table

log = logging.getLogger(__name__)

VERSION = b"1"
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("image_id", "uri")),
        *(pa.field(name, pa.string()) for name in ("subject", "session", "site", "sequence", "split", "mask_uri")),
        pa.field("age", pa.float64()),
        *(pa.field(name, pa.string()) for name in ("sex", "manufacturer")),
        pa.field("field_strength_t", pa.float64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("spacing_mm", pa.list_(pa.float64())),
        pa.field("orientation", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ],
    metadata={b"mmh_manifest_version": VERSION},
)
"""Columns of the manifest; the version stands in the file's metadata.

`image_id` is unique: the BIDS stem, or the relative path of a file that cannot have one. `split` is train, val, test or
none (a subject without a usable image); `sex` M, F or O; `orientation` the ends of the voxel axes, such as RAS;
`status` ok or unusable, with the `reason`.
"""

Row = dict[str, Any]

NAMED = 5
"""Names in a warning that stands for many."""
_SITE_HELP = (
    "Give a `site` column in participants.tsv, sub-X_sessions.tsv or the scans.tsv, a `Site` key in the JSON sidecar, "
    "or manifest.site_pattern, a regular expression on the relative path such as '(?P<site>[a-z]+)-'."
)
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


def find_images(
    bids_root: str | Path,
    site_pattern: str | None = None,
    advance: Callable[[int], object] = lambda count: None,
    require_site: bool = True,
) -> list[Row]:
    """A row per NIfTI file in `sub-*/[ses-*/]anat/` (never derivatives, never hidden files), ordered by `image_id`.

    Parameters
    ----------
    bids_root:
        Local folder of the archive.
    site_pattern:
        Regular expression with a group `site`, searched in the relative path where tables and sidecars give no site.
    advance:
        Called with 1 for every image found.
    require_site:
        Whether an image without a site cannot be used, and an archive without any is refused.

    Returns
    -------
    list[Row]
        Keys of :data:`SCHEMA`. What cannot be used (name, link out of the archive, no site, second file of an image)
        has status `unusable` and its reason, as has a folder that cannot be read; `shape` to `sha256` and `split` are still None.

    Raises
    ------
    DataError
        If the folder, its participants.tsv or every image's site is missing or unreadable, or it holds no image.
    ConfigError
        If ``site_pattern`` is no regular expression with a group `site`.
    """
    archive = _Archive(bids_root, site_pattern, require_site)
    rows: list[Row] = []
    for row in archive.all_rows():
        rows.append(row)
        advance(1)
    if not rows:
        raise DataError(f"{archive.root}: no image", "sub-*/[ses-*/]anat/*.nii[.gz]", "Name the folder of the sub-*.")
    if require_site and not any(row["site"] for row in rows):
        raise DataError(f"{archive.root}: none of {len(rows)} images has a site", "a site per image", _SITE_HELP)
    _mark_duplicates(rows, archive.root)
    return sorted(rows, key=lambda row: row["image_id"])


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of :data:`SCHEMA`."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def write_manifest(table: pa.Table, path: str | Path) -> None:
    """Write the manifest to a local path (whole or not at all) or a URI such as s3://bucket/manifest.parquet."""
    filesystem, key = _located(path)
    if filesystem is not None:
        pq.write_table(table, key, filesystem=filesystem)
        return
    with whole_file(path) as partial:
        pq.write_table(table, partial)


def read_manifest(path: str | Path) -> pa.Table:
    """Read a manifest from a local path or a URI.

    Raises
    ------
    DataError
        If there is no such file, it is no Parquet file, or no manifest of this version.
    """
    remedy = "Build it with `mmh manifest BIDS manifest.parquet`."
    try:
        filesystem, key = _located(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}", "a path or a URI such as s3://bucket/manifest.parquet", remedy) from error
    return read_table(key, SCHEMA, "manifest", remedy, filesystem, str(path))


def _located(path: str | Path) -> tuple[pa.fs.FileSystem | None, str | Path]:
    """File system and path of a URI; a local path as it is, without one."""
    return pa.fs.FileSystem.from_uri(str(path)) if "://" in str(path) else (None, path)


class _Archive:
    """What the whole archive says: its root, its participants, its brain masks, its own sidecars."""

    def __init__(self, root: str | Path, site_pattern: str | None, require_site: bool) -> None:
        self.root, self.require_site = Path(root).resolve(), require_site
        if not self.root.is_dir():
            remedy = "Name the folder that holds the sub-* folders; mount or copy archives of an object store."
            raise DataError(f"{root}: no such folder", "a BIDS archive on a local or mounted disk", remedy)
        self.pattern = _compiled(site_pattern)
        self.participants = _table(self.root / "participants.tsv", "participant_id", self.root)
        self.masks = _brain_masks(self.root)
        self.sidecars = _sidecars(self.root, self.root)

    def all_rows(self) -> Iterator[Row]:
        """A row per image of the archive, and one per folder that hides its images."""
        empty: list[str] = []
        for subject in _folders(self.root, lambda name: name.startswith("sub-")):
            rows = list(self.rows_below(subject))
            empty += [] if rows else [subject.name]
            yield from rows
        _warn_of(empty, "no image in sub-*/[ses-*/]anat/ of a subject")

    def rows_below(self, folder: Path) -> Iterator[Row]:
        """Rows of a subject, a session or an anat folder; one that cannot be read is a row itself."""
        sessions = folder.parent == self.root
        try:
            rows = list(self.rows(folder)) if folder.name == "anat" else []
            inner = _folders(folder, lambda name: name == "anat" or (sessions and name.startswith("ses-")))
        except (DataError, OSError) as error:
            rows, inner = [self.lost(folder, error)], []
        yield from rows
        for path in inner if folder.name != "anat" else ():
            yield from self.rows_below(path)

    def lost(self, folder: Path, error: Exception) -> Row:
        """The row that stands for all images of a folder that cannot be read."""
        relative = folder.relative_to(self.root)
        row = dict.fromkeys(SCHEMA.names) | {"image_id": _printable(relative), "uri": _printable(folder)}
        subject = _printable(relative.parts[0]).removeprefix("sub-")
        return row | {"subject": subject, "status": "unusable", "reason": _printable(str(error))}

    def rows(self, anat: Path) -> Iterator[Row]:
        """A row per image of one anat folder; its tables and sidecars are read once."""
        depth = len(anat.relative_to(self.root).parts)
        levels = [anat, *anat.parents][depth - 1 :: -1]  # sub-X, [ses-Y,] anat
        sidecars = self.sidecars + [sidecar for level in levels for sidecar in _sidecars(level, self.root)]
        names = tuple(level.name for level in levels[:-1])
        problem, sessions, scans = None, {}, {}
        try:
            sessions = _table(levels[0] / f"{names[0]}_sessions.tsv", "session_id", self.root)
            scans = _table(anat.parent / f"{'_'.join(names)}_scans.tsv", "filename", self.root)
        except DataError as error:
            problem = error
        for path in _listing(anat):
            if path.name.lower().endswith((".nii", ".nii.gz")):
                facts = (self.participants.get(names[0]), sessions.get(names[-1]), scans.get(f"anat/{path.name}"))
                table = {key: text for fact in facts for key, text in (fact or {}).items() if text}
                yield self.row(path, names, table, sidecars, problem)

    def row(self, path: Path, folders: tuple[str, ...], table: Row, sidecars: list, problem: DataError | None) -> Row:
        """The row of one file; every reason not to use it ends in the row."""
        relative = _printable(path.relative_to(self.root).as_posix())
        row = dict.fromkeys(SCHEMA.names) | {"image_id": relative, "uri": _printable(path), "status": "ok"}
        try:
            entities = parse(path)
            if entities.folders != folders:
                expected = f"it in {'/'.join(entities.folders)}, as its name says"
                raise DataError(f"{relative}: in {'/'.join(folders)}", expected, "Move or rename it.")
            row |= {"image_id": entities.image_id, "subject": entities.subject, "session": entities.session}
            row |= {"sequence": entities.suffix} | self.facts(entities, relative, table, _inherited(sidecars, entities))
            if problem:
                raise problem
            self.check_file(path, relative)
            if self.require_site and row["site"] is None:
                raise DataError(f"{relative}: no site", "a site per image", _SITE_HELP)
        except DataError as error:
            row |= {"status": "unusable", "reason": _printable(str(error))}
        return row

    def facts(self, entities: Entities, relative: str, table: Row, sidecar: Row) -> Row:
        """Site, mask, person and scanner; tables before sidecars before the pattern."""
        found = self.pattern.search(relative) if self.pattern else None
        of_image = frozenset(entities.without("desc").tags.items())
        sites = [table.get("site"), table.get("site_id"), sidecar.get("Site"), sidecar.get("InstitutionName")]
        sites += [found["site"]] if found else []
        return {
            "site": next((text for text in map(_text, sites) if text), None),
            "mask_uri": self.masks.get(of_image | {("mod", entities.suffix)}, self.masks.get(of_image)),
            "age": _number(str(table.get("age", "")).rstrip("+")),
            "sex": _SEXES.get(str(table.get("sex", "")).lower()),
            "manufacturer": _text(sidecar.get("Manufacturer", table.get("manufacturer"))),
            "field_strength_t": _number(sidecar.get("MagneticFieldStrength", table.get("field_strength_t"))),
        }

    def check_file(self, path: Path, relative: str) -> None:
        """Raise DataError for links that leave the archive or lead nowhere, folders and devices."""
        if not _inside(path, self.root):
            raise DataError(f"{relative}: a link out of the archive", "a file inside it", "Copy the file to its place.")
        if not path.is_file():
            kind = "a broken link" if path.is_symlink() else "not a file"
            raise DataError(f"{relative}: {kind}", "a regular file", "Fetch its content (datalad get) or remove it.")


def _folders(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Folders of these names inside one, and links of these names that lead to none: they are missed, not passed over."""

    def is_one(path: Path) -> bool:
        try:
            return path.is_dir() or (path.is_symlink() and not path.exists())
        except OSError:  # it says why when it is read
            return True

    return [path for path in _listing(folder) if wanted(path.name) and is_one(path)]


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        broken = folder.is_symlink() and isinstance(error, FileNotFoundError)
        problem = "a broken link" if broken else error.strerror
        remedy = "Restore it or check its permissions."
        raise DataError(f"{folder}: {problem}", "a readable folder", remedy) from error


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _mark_duplicates(rows: list[Row], root: Path) -> None:
    """Of files with one image_id the first good one keeps it; the others are named by their path."""
    seen: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["status"] != "ok"):
        first = seen.setdefault(row["image_id"], row)
        if first is not row:
            reason = f"second file of image {row['image_id']}; expected one. Remove this one or {first['uri']}."
            row |= {"image_id": Path(row["uri"]).relative_to(root).as_posix()}
            row |= {"status": "unusable", "reason": row["reason"] or reason}


def _table(path: Path, key: str, root: Path) -> dict[str, dict[str, str]]:
    """Rows of a TSV by their key column, column names in lower case, n/a left empty; no file is an empty table."""
    if not path.is_file():
        return {}
    if not _inside(path, root):
        raise DataError(f"{path}: a link out of the archive", "a file inside it", "Copy the file to its place.")
    remedy = "Save it as tab-separated UTF-8."
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            lines = [{str(name).strip().lower(): text for name, text in line.items()} for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: {error}", "a readable table", remedy) from error
    if lines and key not in lines[0]:
        raise DataError(f"{path}: columns {list(lines[0])}", f"a column {key}", remedy)
    table: dict[str, dict[str, str]] = {}
    for line in lines:
        values = {name: _text(text) or "" for name, text in line.items()}
        first = table.setdefault(_with_prefix(values[key], key), values)
        for name in first:  # a subject listed twice: what differs is not known of the subject
            first[name] = first[name] if first[name] == values.get(name) else ""
    return table


def _with_prefix(label: str, key: str) -> str:
    prefix = {"participant_id": "sub-", "session_id": "ses-"}.get(key, "")
    return prefix + label.removeprefix("./").removeprefix(prefix)


def _sidecars(folder: Path, root: Path) -> list[tuple[dict[str, str], str, Row]]:
    """Entities, suffix and content of the JSON files of one folder, the more specific later."""
    found = []
    for path in _listing(folder):
        if path.suffix == ".json" and _inside(path, root) and path.is_file():
            try:
                content = json.loads(path.read_bytes())
                if isinstance(content, dict):
                    found.append((*split_name(path.name), content))
            except DataError:
                continue  # dataset_description.json and the like belong to no image
            except (OSError, ValueError, RecursionError) as error:
                log.warning("%s is left out: %s", path, error)
    return sorted(found, key=lambda sidecar: len(sidecar[0]))


def _inherited(sidecars: list[tuple[dict[str, str], str, Row]], entities: Entities) -> Row:
    """BIDS inheritance: of all that apply, the nearer and more specific wins."""
    tags, merged = entities.tags.items(), Row()
    for applies_to, suffix, content in sidecars:
        if suffix == entities.suffix and applies_to.items() <= tags:
            merged |= content
    return merged


def _brain_masks(root: Path) -> dict[frozenset, str]:
    """Paths of `*_desc-brain_mask.nii[.gz]` under derivatives/, by their entities besides that; `mod-T1w` ties one to a sequence.

    What is left out is warned of, by its kind.
    """
    masks: dict[frozenset, str] = {}
    unread: list[str] = []
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    top = root / "derivatives"
    for folder, subfolders, names in os.walk(top, onerror=lambda error: unread.append(error.filename)):
        subfolders.sort()
        endings = ("_desc-brain_mask.nii.gz", "_desc-brain_mask.nii")
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(endings)):
            try:
                tags = frozenset(parse(path).without("desc").tags.items())
            except DataError as error:
                log.warning("%s is left out: %s", _printable(path), error)
                continue
            if not _inside(path, root):
                left_out["a link out of the archive"].append(str(path))
            elif _printable(path) != str(path):
                left_out["its path is not UTF-8"].append(str(path))
            elif masks.setdefault(tags, str(path)) != str(path):
                left_out["the second of its entities"].append(str(path))
    _warn_of(unread if top.exists() else [], "a folder of derivatives that cannot be read")
    for why, paths in left_out.items():
        _warn_of(paths, f"a brain mask left out, {why}")
    return masks


def _warn_of(paths: list[str], what: str) -> None:
    """One line, whatever the number."""
    if paths:
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        log.warning("%d x %s: %s%s", len(paths), what, _printable(", ".join(paths[:NAMED])), more)


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    received = f"manifest.site_pattern={pattern!r}"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{received}: {error}", "a regular expression", "Correct it.") from error
    if "site" not in compiled.groupindex:
        raise ConfigError(received, "a group (?P<site>...)", "Name the group that is the site.")
    return compiled


def _text(value: Any) -> str | None:
    """Text without surrounding space that UTF-8 can hold; None for what says nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip().encode("utf-8", "replace").decode()
    return None if text.lower() in ("", "n/a", "nan", "none") else text


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _printable(text: str | Path) -> str:
    """Bytes of a name that are not UTF-8 as `\\xff`, so that different names stay different."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
