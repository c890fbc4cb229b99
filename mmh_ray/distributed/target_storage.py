"""Stores target bundles: a folder per site, which no other site shares, and which is only replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs

from mmh_ray import tracking
from mmh_ray.bids.entities import desc_of
from mmh_ray.config import Config
from mmh_ray.distributed.run_storage import open_storage
from mmh_ray.errors import ConfigError
from mmh_ray.models.bundle_files import MOST_FACTS
from mmh_ray.models.target.bundle import FACTS

_RENAME = "Rename one of the sites in the archive and prepare it again."


def check_places(config: Config) -> None:
    """Raise ConfigError if targets would overwrite each other or any other folder.

    Two sites are refused if their names give the same name of a model or of an image. Upper and lower case are not
    distinguished, because many file systems do not.
    """
    places: dict[str, str] = {}
    storage, root = open_storage(config.target.storage)
    for site in config.target.site:
        name = tracking.target_model_name(site)
        for taken in (name.lower(), desc_of(site).lower()):
            if places.setdefault(taken, site) != site:
                received = f"sites {places[taken]!r} and {site!r}, both {name}"
                raise ConfigError(received, "names that stay different", _RENAME)
        place = place_of(root, site)
        if not storage.get_file_info(pyarrow.fs.FileSelector(place, allow_not_found=True)):
            continue
        earlier = _recorded_site(storage, f"{place}/{FACTS}")
        if earlier is None:
            raise ConfigError(
                f"{place}: no target", "a new folder or an earlier target", "Empty it or change target.storage."
            )
        if earlier != site:
            raise ConfigError(f"{place}: target of site {earlier!r}", f"a target of site {site!r}", _RENAME)


def _recorded_site(storage: pyarrow.fs.FileSystem, path: str) -> str | None:
    """The site in the facts of an earlier target; None if they cannot be read."""
    if storage.get_file_info(path).type != pyarrow.fs.FileType.File:
        return None
    with storage.open_input_stream(path) as stream:
        content = stream.read(MOST_FACTS)
    try:
        site = json.loads(content)["site"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return site if isinstance(site, str) else None


def place_of(root: str, site: str) -> str:
    """Folder of a site's target."""
    return f"{root}/targets/{tracking.target_model_name(site).removeprefix('mmh-target-')}"


def put_target(storage: pyarrow.fs.FileSystem, local: Path, target: str) -> None:
    """Upload a bundle next to its place, then swap: an earlier target stays complete until the new one has arrived."""
    partial = f"{target}.partial"
    for folder in (partial, target):
        storage.create_dir(folder)
    storage.delete_dir_contents(partial)
    pyarrow.fs.copy_files(str(local), partial, destination_filesystem=storage)
    storage.delete_dir_contents(target)  # the earlier target may have had more sequences
    for info in storage.get_file_info(pyarrow.fs.FileSelector(partial)):
        storage.move(info.path, f"{target}/{info.base_name}")  # file by file: object stores cannot move folders
    storage.delete_dir(partial)
