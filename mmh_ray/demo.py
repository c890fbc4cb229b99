"""`mmh demo`: the whole way through the public commands, phantom to evaluation, on this machine."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

import yaml

from mmh_ray.config import Config, to_dict
from mmh_ray.errors import ConfigError
from mmh_ray.provenance import write_json

log = logging.getLogger(__name__)

MARKER = ".mmh-demo"


def run(out: str, config: Config) -> None:
    """Phantom, manifest, prepare, train-global (which registers), harmonize the travelers, evaluate.

    ``out`` then holds the archive, the store, the runs, MLflow's database, the derivatives, ``metrics.json`` and ``figures/``. An
    earlier demo in the same folder is removed first.

    Raises
    ------
    ConfigError
        If ``out`` holds something else, or a command fails.
    """
    from mmh_ray.cli import main

    root = _fresh(Path(out).absolute())
    settings = str(root / "config.yaml")
    Path(settings).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    store, bids, harmonized = str(root / "prepared"), root / "bids", str(root / "harmonized")
    manifest, evaluation = str(root / "manifest.parquet"), root / "evaluation"
    tracking = f"tracking.uri=sqlite:///{root / 'mlflow.db'}"
    travelers = [f"traveler{number:02d}" for number in range(1, config.phantom.travelers + 1)]
    model = f"models:/{config.tracking.model_name}@{config.tracking.alias}"
    stages = {
        "phantom": [str(bids)],
        "manifest": [str(bids), manifest],
        "prepare": [manifest, store],
        "train-global": [store, tracking, f"train.storage={root / 'runs'}"],
        "harmonize": [str(bids), harmonized, "--model", model, tracking, "--participant-label", *travelers],
        "evaluate": [manifest, harmonized, str(evaluation), "--truth", str(bids / "derivatives" / "truth")],
    }
    seconds = {}
    for command, arguments in stages.items():
        log.info("mmh %s %s", command, " ".join(arguments))
        start = time.monotonic()
        code = main([command, *arguments, "--config", settings])
        seconds[command.replace("-", "_")] = round(time.monotonic() - start, 1)
        if code != 0:
            raise ConfigError(f"mmh {command} ended with code {code}", "code 0", "Read the messages above.")
    metrics = json.loads((evaluation / "metrics.json").read_text())
    write_json(root / "metrics.json", {**metrics, "seconds": {**seconds, "total": round(sum(seconds.values()), 1)}})
    shutil.copytree(evaluation / "figures", root / "figures", dirs_exist_ok=True)
    log.info("%.0f s in all; figures and metrics.json in %s", sum(seconds.values()), root)


def _fresh(root: Path) -> Path:
    """An empty folder, marked as a demo's own."""
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise ConfigError(f"{root} is not empty", "a new folder or one of an earlier demo", "Name another folder.")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    return root
