"""`mmh demo`: the whole way through the public commands, phantom to evaluation, global and target, on this machine."""

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
    """Phantom, manifest, prepare, train-global (which registers), harmonize the travelers, evaluate; then the same for a target site.

    ``out`` then holds the archive, the store, the runs, MLflow's database, the derivatives, ``metrics.json`` and ``figures/``. An
    earlier demo in the same folder is removed first. Without ``target.site`` the second half is left out.

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
    truth, moved, scores = str(bids / "derivatives" / "truth"), str(root / "target"), str(root / "target.json")
    stages = {
        "phantom": ["phantom", str(bids)],
        "manifest": ["manifest", str(bids), manifest],
        "prepare": ["prepare", manifest, store],
        "train_global": ["train-global", store, tracking, f"train.storage={root / 'runs'}"],
        "harmonize": [
            "harmonize",
            str(bids),
            harmonized,
            "--model",
            model,
            tracking,
            "--participant-label",
            *travelers,
        ],
        "evaluate": ["evaluate", manifest, harmonized, str(evaluation), "--truth", truth],
    }
    for site in config.target.site[:1]:
        stages |= {
            "train_target": ["train-target", store, "--model", model, tracking, f"target.storage={root / 'runs'}"],
            "harmonize_target": [*stages["harmonize"][:2], moved, *stages["harmonize"][3:], "--target", site],
            "evaluate_target": ["evaluate-target", manifest, site, harmonized, moved, scores, "--truth", truth],
        }
    seconds = {}
    for name, arguments in stages.items():
        log.info("mmh %s", " ".join(arguments))
        start = time.monotonic()
        code = main([*arguments, "--config", settings])
        seconds[name] = round(time.monotonic() - start, 1)
        if code != 0:
            raise ConfigError(f"mmh {arguments[0]} ended with code {code}", "code 0", "Read the messages above.")
    metrics = json.loads((evaluation / "metrics.json").read_text())
    if config.target.site:
        for sequence, methods in json.loads(Path(scores).read_text()).items():
            metrics[sequence] |= methods
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
