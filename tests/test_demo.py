"""The demo without its minutes: which commands it gives, and what of their outcome it keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmh_ray import demo
from mmh_ray.config import Config, PhantomConfig, TargetConfig
from mmh_ray.distributed import evaluate_target
from mmh_ray.errors import ConfigError
from mmh_ray.evaluation.target_metrics import METHODS

pytestmark = pytest.mark.fast

CONFIG = Config(phantom=PhantomConfig(travelers=2), target=TargetConfig(("alder",)))
SCORED = {"psnr": 20.0, "ssim": 0.9, "truth_nrmse": 0.1, "w1": 0.02, "gradient_correlation": 0.99}
SEQUENCES = ("T1w", "T2w")


class Recorder:
    """Runs no command; keeps the lines and writes what the two evaluations would."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []

    def __call__(self, line: Sequence[str]) -> int:
        """Answer that all went well."""
        self.lines.append(list(line))
        if line[0] == "evaluate-target":
            target = {name: dict.fromkeys(METHODS, SCORED) for name in SEQUENCES}
            Path(line[5]).write_text(json.dumps(target))
        if line[0] == "evaluate":
            folder = Path(line[line.index("--out") + 1])
            (folder / "figures").mkdir(parents=True)
            about = {"problems": [], "notes": [], "subjects": 2, "code_version": "1"}
            measures = {name: {"psnr": {"value": 30.0}} for name in SEQUENCES}
            evaluation = {"about": about, "differences": {}, "raw": measures, "ours": measures}
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return 0


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Pictures that were asked for."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(evaluate_target, "draw", lambda *given: calls.append(given))
    return calls


def test_the_target_is_moved_to_scored_and_drawn(drawn: list[tuple[Any, ...]], tmp_path: Path) -> None:
    run_command = Recorder()
    demo.run(str(tmp_path / "out"), CONFIG, run_command)
    commands = run_command.lines
    root = tmp_path / "out"
    names = ["phantom", "harmonize", "manifest", "prepare", "train-global", "harmonize"]
    assert [line[0] for line in commands] == [*names, "train-target", "harmonize", "evaluate-target", "evaluate"]
    unified, moved, scores = str(root / "harmonized"), str(root / "target"), str(root / "target.json")
    assert "--model" not in commands[1]
    assert commands[7][1:3] == [str(root / "bids"), moved]
    assert commands[7][commands[7].index("--target") + 1] == "alder"
    assert commands[8][1:6] == [str(root / "manifest.parquet"), "alder", unified, moved, scores]
    assert f"ours_target={moved}" in commands[9]
    metrics = json.loads((root / "metrics.json").read_text())
    for sequence in SEQUENCES:
        assert metrics[sequence]["harmonized"]["psnr"] == 30.0
        for method in ("target_raw", "target_n4_histogram_matching", "target_global", "target_harmonized"):
            assert SCORED.items() <= metrics[sequence][method].items()
    truth = str(root / "bids" / "derivatives" / "truth")
    assert drawn == [(str(root / "manifest.parquet"), "alder", unified, moved, CONFIG, truth, root / "figures")]


def test_without_a_target_there_is_no_target_stage(drawn: list[tuple[Any, ...]], tmp_path: Path) -> None:
    run_command = Recorder()
    demo.run(str(tmp_path), Config(), run_command)
    assert not {"train-target", "evaluate-target"} & {line[0] for line in run_command.lines}
    assert "target_raw" not in json.loads((tmp_path / "metrics.json").read_text())["T1w"]
    assert not drawn


def test_a_command_that_fails_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mmh prepare ended with code 1"):
        demo.run(str(tmp_path), CONFIG, lambda line: int(line[0] == "prepare"))
