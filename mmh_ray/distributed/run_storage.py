"""Opens the storage for checkpoints and bundles, and starts or resumes the MLflow run of a training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.fs

from mmh_ray import tracking
from mmh_ray.config import Config, to_dict
from mmh_ray.errors import ConfigError
from mmh_ray.object_store import join_uri, open_folder_to_write
from mmh_ray.provenance import hash_of

log = logging.getLogger(__name__)

RECORD = "run.json"
"""File next to a run's checkpoints with the id of its MLflow run, and a hash of its settings and data."""


def open_storage(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """File system and folder of a storage for runs; a local folder is created."""
    if "://" not in uri:
        Path(uri).mkdir(parents=True, exist_ok=True)
        return pyarrow.fs.LocalFileSystem(), str(Path(uri).absolute())
    return open_folder_to_write(uri)


def cited_place(storage_uri: str, root: str, place: str) -> str:
    """The address of a place below the root of a storage, for users: its URI, or its path in a local storage."""
    return join_uri(storage_uri, place.removeprefix(f"{root}/")) if "://" in storage_uri else place


def start_or_continue(storage: pyarrow.fs.FileSystem, folder: str, config: Config, facts: dict[str, Any]) -> str:
    """Id of the MLflow run of this training, which is new or resumed.

    Raises
    ------
    ConfigError
        If the run in this folder has other settings or data.
    """
    fingerprint = _fingerprint(config, facts["data_hash"])
    storage.create_dir(folder)
    record = f"{folder}/{RECORD}"
    earlier: dict[str, str] = {}
    if storage.get_file_info(record).type == pyarrow.fs.FileType.File:
        with storage.open_input_stream(record) as stream:
            earlier = json.loads(stream.read())
        if earlier["fingerprint"] != fingerprint:
            raise ConfigError(
                f"train.run_name={config.train.run_name!r}, which exists with other settings or data",
                "the settings and data it was started with, or a new name",
                "Set train.run_name to a new name, or remove the old run.",
            )
        log.info("run %s exists: continuing from its last checkpoint", config.train.run_name)
    run_id = tracking.start_run(config, config.train.run_name, earlier.get("run_id"), facts)
    with storage.open_output_stream(record) as stream:
        stream.write(json.dumps({"run_id": run_id, "fingerprint": fingerprint}).encode())
    return run_id


def _fingerprint(config: Config, data_hash: str) -> str:
    """Hash of a training's data and settings, except for settings of where and on what it runs."""
    settings = to_dict(config)
    sections = {name: settings[name] for name in ("grid", "restyle", "model", "train")}
    for name in ("storage", "workers", "use_gpu", "checkpoint_every", "wait_s"):
        del sections["train"][name]
    return hash_of([sections, data_hash])
