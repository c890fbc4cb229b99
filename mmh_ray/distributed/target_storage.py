"""Where targets lie in the storage: a folder a site, which is no other site's, and replaced only by a whole new one."""

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

_RENAME = "Rename one of them in the archive and prepare it again."


def check_places(config: Config) -> None:
    """Two sites whose names become one model's, or one image's, must not overwrite each other, nor a target any other folder.

    Names that differ in capitals alone are one to many a file system.
    """
    places: dict[str, str] = {}
    storage, root = open_storage(config.target.storage)
    for site in config.target.site:
        name = tracking.target_model_name(site)
        for taken in (name.lower(), desc_of(site).lower()):
            if places.setdefault(taken, site) != site:
                received = f"sites {places[taken]!r} and {site!r}, both {name}"
                raise ConfigError(received, "names that stay apart", _RENAME)
        place = place_of(root, site)
        if not storage.get_file_info(pyarrow.fs.FileSelector(place, allow_not_found=True)):
            continue
        earlier = _site_there(storage, f"{place}/{FACTS}")
        if earlier is None:
            raise ConfigError(
                f"{place}: no target", "a new folder or an earlier target", "Empty it or change target.storage."
            )
        if earlier != site:
            raise ConfigError(f"{place}: target of site {earlier!r}", f"one of {site!r}", _RENAME)


def _site_there(storage: pyarrow.fs.FileSystem, path: str) -> str | None:
    """The site of an earlier target by its facts; None where they cannot be read."""
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
    """Copy a bundle beside its place, then swap: an earlier target is whole until the new one has arrived."""
    partial = f"{target}.partial"
    for folder in (partial, target):
        storage.create_dir(folder)
    storage.delete_dir_contents(partial)
    pyarrow.fs.copy_files(str(local), partial, destination_filesystem=storage)
    storage.delete_dir_contents(target)  # it may have had more sequences
    for found in storage.get_file_info(pyarrow.fs.FileSelector(partial)):
        storage.move(found.path, f"{target}/{found.base_name}")  # file by file: object stores move no folders
    storage.delete_dir(partial)
