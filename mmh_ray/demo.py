"""Runs the whole pipeline on this machine through the public commands, from phantom to evaluation (`mmh demo`)."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
EXPECTED = (
    "psnr",
    "ssim",
    "w1",
    "psnr_truth",
    "ssim_truth",
    "gradient_correlation",
    "tissue_contrast",
    "truth_nrmse",
)
"""Measures in metrics.json for every method; None where a measure is not available."""

RunCommand = Callable[[Sequence[str]], int]
"""Runs `mmh` with these arguments and returns its exit code; raises KeyboardInterrupt if it was interrupted."""


@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Attributes
    ----------
    name:
        Key of its duration in metrics.json.
    command:
        Arguments of `mmh`.
    has_settings:
        Whether it uses the demo's settings rather than the defaults.
    """

    name: str
    command: list[str]
    has_settings: bool = True


class Places:
    """Files and folders that the demo writes."""

    def __init__(self, root: Path) -> None:
        self.settings = root / "config.yaml"
        self.bids = root / "bids"
        self.truth = root / "bids" / "derivatives" / "truth"
        self.manifest = root / "manifest.parquet"
        self.prepared = root / "prepared"
        self.runs = root / "runs"
        self.database = root / "mlflow.db"
        self.harmonized_base = root / "harmonized-base"
        self.harmonized = root / "harmonized"
        self.harmonized_target = root / "target"
        self.evaluation = root / "evaluation"
        self.evaluation_at_target = root / "evaluation-target"
        self.figures = root / "figures"
        self.metrics = root / "metrics.json"


def run(out: str, config: Config, run_command: RunCommand) -> None:
    """Run every stage, then gather the figures.

    Simulates a phantom archive and harmonizes its travelers with the shipped model. Then runs manifest, prepare and
    train-global, and harmonizes the travelers with the new model. Does the same for a target site, if ``target.site``
    is set. Finally evaluates all outputs. An earlier demo in the same folder is removed first.

    Raises
    ------
    ConfigError
        If ``out`` holds other files, or a command fails.
    """
    root = _fresh(Path(out).resolve())  # if it is a link, its target is emptied and the link stays
    places = Places(root)
    places.settings.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    seconds: dict[str, float] = {}
    for stage in stages_of(config, places):
        seconds[stage.name] = _timed(stage, places, run_command)
    total = sum(seconds.values())

    metrics = metrics_of(_read_evaluation(places.evaluation))
    shutil.copytree(places.evaluation / "figures", places.figures, dirs_exist_ok=True)
    if config.target.site:
        _add_target(metrics, places)
    write_json(places.metrics, {**metrics, "seconds": {**seconds, "total": round(total, 1)}})
    log.info("%.0f s in all; metrics.json, figures and evaluation/report.html in %s", total, root)


def stages_of(config: Config, places: Places) -> list[Stage]:
    """Commands of the demo, in order."""
    travelers = [f"traveler{number:02d}" for number in range(1, config.phantom.travelers + 1)]
    model = f"models:/{config.tracking.model_name}@{config.tracking.alias}"
    tracking = f"tracking.uri=sqlite:///{places.database}"
    by_model = ["--model", model, tracking, "--participant-label", *travelers]

    phantom = ["phantom", str(places.bids)]
    harmonize_base = ["harmonize", str(places.bids), str(places.harmonized_base), "--participant-label", *travelers]
    manifest = ["manifest", str(places.bids), str(places.manifest)]
    prepare = ["prepare", str(places.manifest), str(places.prepared)]
    train_global = ["train-global", str(places.prepared), tracking, f"train.storage={places.runs}"]
    harmonize = ["harmonize", str(places.bids), str(places.harmonized), *by_model]
    stages = [
        Stage("phantom", phantom),
        Stage("harmonize_base", harmonize_base, has_settings=False),  # the shipped model has its own grid
        Stage("manifest", manifest),
        Stage("prepare", prepare),
        Stage("train_global", train_global),
        Stage("harmonize", harmonize),
    ]
    archives = [f"raw={places.manifest}", f"ours={places.harmonized}", f"base={places.harmonized_base}"]

    if config.target.site:
        site = config.target.site[0]
        train_target = ["train-target", str(places.prepared), "--model", model, tracking]
        train_target.append(f"target.storage={places.runs}")
        harmonize_target = ["harmonize", str(places.bids), str(places.harmonized_target), *by_model, "--target", site]
        at_target = [f"raw={places.manifest}", f"ours={places.harmonized_target}", f"global={places.harmonized}"]
        evaluate_target = _evaluate(at_target, places.truth, places.evaluation_at_target)
        evaluate_target += ["--target", site]
        stages += [
            Stage("train_target", train_target),
            Stage("harmonize_target", harmonize_target),
            Stage("evaluate_target", evaluate_target),
        ]
        archives.append(f"ours_target={places.harmonized_target}")

    evaluate = _evaluate(archives, places.truth, places.evaluation)
    evaluate += ["--model", model, tracking]
    return [*stages, Stage("evaluate", evaluate)]


def _evaluate(archives: Sequence[str], truth: Path, out: Path) -> list[str]:
    command = ["evaluate"]
    for archive in archives:
        command += ["--archive", archive]
    return [*command, "--truth", str(truth), "--out", str(out)]


def _timed(stage: Stage, places: Places, run_command: RunCommand) -> float:
    """Run a stage and return its seconds; ConfigError if it fails."""
    log.info("mmh %s", " ".join(stage.command))
    settings = ["--config", str(places.settings)] if stage.has_settings else []
    start = time.monotonic()
    code = run_command([*stage.command, *settings])
    if code != 0:
        received = f"mmh {stage.command[0]} ended with code {code}"
        raise ConfigError(received, "code 0", "Read the messages above.")
    return round(time.monotonic() - start, 1)


def _read_evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def _add_target(metrics: dict[str, Any], places: Places) -> None:
    """Add the figures of the target site to each sequence's, and copy a picture of images harmonized to it."""
    at_target = metrics_of(_read_evaluation(places.evaluation_at_target))
    for key in ("missing", "failed"):
        metrics[key] += at_target[key]
    for sequence in at_target["subjects"]:
        for method, values in at_target[sequence].items():
            metrics[sequence][f"target_{method}"] = values
        picture = places.evaluation_at_target / "figures" / f"{sequence}_before_after.png"
        shutil.copyfile(picture, places.figures / f"target_{sequence}.png")


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Content of metrics.json: ``{sequence: {method: {measure: number or None}}}`` and facts about the evaluation.

    Our method is named `harmonized`.
    """
    about = evaluation["about"]
    metrics: dict[str, Any] = {}
    for sequence, methods in by_sequence(evaluation).items():
        metrics[sequence] = {}
        for method, values in methods.items():
            shown_name = "harmonized" if method == OURS else method
            metrics[sequence][shown_name] = dict.fromkeys(EXPECTED) | values
    metrics["missing"] = []
    metrics["failed"] = []
    for problem in about["problems"]:
        kind = "missing" if problem["status"] == "missing" else "failed"
        metrics[kind].append({key: problem[key] for key in ("image_id", "method", "reason")})
    for key in ("notes", "subjects", "code_version"):
        metrics[key] = about[key]
    return metrics


def _fresh(root: Path) -> Path:
    """Make an empty folder with the demo's marker; ConfigError if it holds files that no demo wrote."""
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise ConfigError(f"{root} is not empty", "a new folder or one of an earlier demo", "Name another folder.")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()
    return root
