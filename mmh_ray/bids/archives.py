"""Matches the volumes of any folder with BIDS names to the images of an archive that they were made from."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmh_ray.bids.entities import UNIFIED, Entities, output_path, parse
from mmh_ray.bids.folders import check_file, leads_to_folder, walk
from mmh_ray.bids.remote_archive import outline
from mmh_ray.bids.text import printable, warn_of
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.object_store import is_remote
from mmh_ray.staging import renamed

DERIVED_ENTITIES = ("desc", "space", "res", "den")
"""Entities that describe how a volume was made and its grid; they do not identify the image."""


class Unmatched(NamedTuple):
    """An image without a usable output of a method: the output is missing, ambiguous or unreadable."""

    method: str
    """Name of the method's archive."""
    image_id: str
    status: str
    """``missing``, ``ambiguous``, ``unusable``, or the status in the manifest."""
    reason: str
    """Explanation for the user."""


class Matched(NamedTuple):
    """Paths by ``image_id``, and the images without one."""

    paths: dict[str, str]
    unmatched: list[Unmatched]


def match(name: str, root: str | Path, rows: Iterable[Mapping[str, Any]], desc: str = UNIFIED) -> Matched:
    """Find the volume with the entities of each image; ``desc`` and ``space`` may differ.

    If several volumes match, the one with the name of our own outputs is used
    (:func:`~mmh_ray.bids.entities.output_path`); without one, the image is ambiguous. Only file names are compared,
    not folders.

    Parameters
    ----------
    name:
        Name of the archive in the results.
    root:
        Folder or URI.
    rows:
        Rows of the manifest: ``image_id`` and ``uri``.
    desc:
        Label of `desc` in the names of our outputs; each target has its own.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    if is_remote(str(root)):
        return _match_stored(name, str(root), rows)
    root = Path(root)
    if not os.path.isdir(root):
        raise ConfigError(f"{name}={root}: no such folder", "a folder of volumes in BIDS naming", "Check the path.")
    images = [(row["image_id"], parse(row["uri"])) for row in rows]
    candidates = _volumes(root, {entities.suffix for _, entities in images})
    images_of_key = Counter(_key(entities) for _, entities in images)
    matched = Matched({}, [])
    for image_id, entities in images:
        key = _key(entities)
        usual_name = output_path(entities, desc=desc).name
        path = _choose(candidates[key], usual_name, is_shared=images_of_key[key] > 1)
        if path is None:
            matched.unmatched.append(_without_volume(name, image_id, candidates[key], root, key, usual_name))
            continue
        try:
            _check_volume(path, root)
        except DataError as error:
            matched.unmatched.append(Unmatched(name, image_id, "unusable", str(error)))
        else:
            matched.paths[image_id] = str(path)
    return matched


def _match_stored(name: str, uri: str, rows: Iterable[Mapping[str, Any]]) -> Matched:
    """:func:`match` for a folder in an object store."""
    with outline(uri) as folder:
        uri_of = {str(folder): uri.rstrip("/")}
        matched = match(name, folder, rows)
    paths = {image_id: renamed(path, uri_of) for image_id, path in matched.paths.items()}
    unmatched = [problem._replace(reason=renamed(problem.reason, uri_of)) for problem in matched.unmatched]
    return Matched(paths, unmatched)


def _volumes(root: Path, suffixes: set[str]) -> defaultdict[str, list[Path]]:
    """Volumes with these suffixes below the folder, by the key of their image; hidden files are left out."""
    volumes: defaultdict[str, list[Path]] = defaultdict(list)
    unread: list[str] = []
    for folder, entries in walk(root, unread.append):
        for entry in entries:
            if leads_to_folder(entry) or not entry.name.endswith((".nii", ".nii.gz")):
                continue
            try:
                entities = parse(entry.name)
            except DataError:
                continue  # no BIDS name, so it belongs to no image
            if entities.suffix in suffixes:
                volumes[_key(entities)].append(Path(folder, entry.name))
    warn_of(unread, "a folder of volumes that cannot be read")
    return volumes


def _check_volume(path: Path, root: Path) -> None:
    """Raise DataError unless it is a regular file in the folder with a path in UTF-8."""
    if printable(path) != str(path):
        raise DataError(f"{printable(path)}: a path that is not UTF-8", "one that is", "Rename its folders.")
    check_file(path, root, str(path))


def _key(entities: Entities) -> str:
    return entities.without(*DERIVED_ENTITIES).image_id


def _choose(paths: list[Path], usual_name: str, is_shared: bool) -> Path | None:
    """The image's volume; None if there is none, or if it is ambiguous.

    Parameters
    ----------
    usual_name:
        Name that our own output of the image has.
    is_shared:
        Whether another image has the same key, so that a volume with any other name could belong to either.
    """
    usual_stem = usual_name.partition(".")[0]
    usually_named = [path for path in paths if path.name.partition(".")[0] == usual_stem]
    if len(usually_named) == 1:
        return usually_named[0]
    if len(paths) == 1 and not is_shared:
        return paths[0]
    return None


def _without_volume(
    name: str, image_id: str, candidates: list[Path], root: Path, key: str, usual_name: str
) -> Unmatched:
    if not candidates:
        return Unmatched(name, image_id, "missing", f"no volume of {key} in {root}")
    names = ", ".join(path.name for path in candidates)
    reason = f"{names} could be meant; keep one, or name it {usual_name}"
    return Unmatched(name, image_id, "ambiguous", reason)
