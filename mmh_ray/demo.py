"""`mmh demo`: the whole way through the public commands, phantom to evaluation, global and target, on this machine."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmh_ray.config import Config, to_dict
from mmh_ray.errors import ConfigError
from mmh_ray.evaluation.metrics.registry import OURS
from mmh_ray.evaluation.statistics.summary import by_sequence
from mmh_ray.provenance import write_json

log = logging.getLogger(__name__)

MARKER = ".mmh-demo"
EXPECTED = dict.fromkeys(
    (*("psnr", "ssim", "w1", "psnr_truth", "ssim_truth"), *("gradient_correlation", "tissue_contrast", "truth_nrmse"))
)
"""Measures that metrics.json gives every method, None where one cannot be had."""


def run(out: str, config: Config) -> None:
    """Phantom, its travelers harmonized by the model that the package brings; then manifest, prepare, train-global (which registers),
    harmonize them again; the same for a target site; evaluate.

    ``out`` then holds the archive, ``harmonized-base/`` with its ``report.html``, the store, the runs, MLflow's database, the derivatives,
    ``metrics.json`` and ``figures/``. An earlier demo in the same folder is removed first. Without ``target.site`` no target is trained.

    Raises
    ------
    ConfigError
        If ``out`` holds something else, or a command fails.
    """
    from mmh_ray.cli import INTERRUPTED, main

    root = _fresh(Path(out).resolve())  # where it is a link, what it leads to is emptied, and it stays
    settings = str(root / "config.yaml")
    Path(settings).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    store, bids, harmonized = str(root / "prepared"), root / "bids", str(root / "harmonized")
    manifest, evaluation = str(root / "manifest.parquet"), root / "evaluation"
    tracking = f"tracking.uri=sqlite:///{root / 'mlflow.db'}"
    travelers = [f"traveler{number:02d}" for number in range(1, config.phantom.travelers + 1)]
    model = f"models:/{config.tracking.model_name}@{config.tracking.alias}"
    whose = ["--model", model, tracking, "--participant-label", *travelers]
    truth, moved, scores = str(bids / "derivatives" / "truth"), str(root / "target"), str(root / "target.json")
    base = str(root / "harmonized-base")
    stages = {
        "phantom": ["phantom", str(bids)],
        "harmonize_base": ["harmonize", str(bids), base, "--participant-label", *travelers],
        "manifest": ["manifest", str(bids), manifest],
        "prepare": ["prepare", manifest, store],
        "train_global": ["train-global", store, tracking, f"train.storage={root / 'runs'}"],
        "harmonize": ["harmonize", str(bids), harmonized, *whose],
    }
    scored = ["--archive", f"raw={manifest}", "--archive", f"ours={harmonized}", "--archive", f"base={base}"]
    for site in config.target.site[:1]:
        stages |= {
            "train_target": ["train-target", store, "--model", model, tracking, f"target.storage={root / 'runs'}"],
            "harmonize_target": ["harmonize", str(bids), moved, *whose, "--target", site],
            "evaluate_target": ["evaluate-target", manifest, site, harmonized, moved, scores, "--truth", truth],
        }
        scored += ["--archive", f"ours_target={moved}"]
    stages["evaluate"] = ["evaluate", *scored, "--truth", truth, "--model", model, tracking, "--out", str(evaluation)]
    seconds = {}
    for name, arguments in stages.items():
        log.info("mmh %s", " ".join(arguments))
        start = time.monotonic()
        as_it_comes = name == "harmonize_base"  # the shipped model has its own grid and needs no settings
        code = main(arguments if as_it_comes else [*arguments, "--config", settings])
        seconds[name] = round(time.monotonic() - start, 1)
        if code == INTERRUPTED:
            raise KeyboardInterrupt(f"mmh {arguments[0]} was interrupted")
        if code != 0:
            raise ConfigError(f"mmh {arguments[0]} ended with code {code}", "code 0", "Read the messages above.")
    metrics = metrics_of(json.loads((evaluation / "evaluation.json").read_text()))
    shutil.copytree(evaluation / "figures", root / "figures", dirs_exist_ok=True)
    if config.target.site:
        from mmh_ray.distributed.evaluate_target import draw

        for sequence, methods in json.loads(Path(scores).read_text()).items():
            metrics[sequence] |= methods
        draw(manifest, config.target.site[0], harmonized, moved, config, truth, root / "figures")
    write_json(root / "metrics.json", {**metrics, "seconds": {**seconds, "total": round(sum(seconds.values()), 1)}})
    log.info("%.0f s in all; metrics.json, figures and evaluation/report.html in %s", sum(seconds.values()), root)


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Values alone: ``{sequence: {method: {measure: number or None}}}``, ours under the name `harmonized`, and who was scored."""
    about = evaluation["about"]
    results = {
        sequence: {
            "harmonized" if name == OURS else name: {measure: values.get(measure) for measure in {**EXPECTED, **values}}
            for name, values in methods.items()
        }
        for sequence, methods in by_sequence(evaluation).items()
    }
    problems: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for row in about["problems"]:
        problems[row["status"] == "missing"].append({key: row[key] for key in ("image_id", "method", "reason")})
    facts = {key: about[key] for key in ("notes", "subjects", "code_version")}
    return {**results, "missing": problems[True], "failed": problems[False], **facts}


def _fresh(root: Path) -> Path:
    """An empty folder, marked as a demo's own."""
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise ConfigError(f"{root} is not empty", "a new folder or one of an earlier demo", "Name another folder.")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    return root
