"""The commands of the demo and what it keeps of their results, without running them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmh_ray import demo
from mmh_ray.config import Config, PhantomConfig, TargetConfig
from mmh_ray.errors import ConfigError

pytestmark = pytest.mark.fast

CONFIG = Config(phantom=PhantomConfig(travelers=2), target=TargetConfig(("alder",)))
SEQUENCES = ("T1w", "T2w")
AT_TARGET = ("raw", "n4_histogram_matching", "global", "ours")


class Recorder:
    """Runs no command: records the lines, and writes the files of the two evaluations."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []

    def __call__(self, line: Sequence[str]) -> int:
        """Record a command and return success."""
        self.lines.append(list(line))
        if line[0] == "evaluate":
            folder = Path(line[line.index("--out") + 1])
            (folder / "figures").mkdir(parents=True)
            is_at_target = "--target" in line
            methods = AT_TARGET if is_at_target else ("raw", "ours")
            psnr = 20.0 if is_at_target else 30.0
            for name in SEQUENCES:
                (folder / "figures" / f"{name}_before_after.png").write_text(folder.name)
            problem = {"image_id": "sub-1_T1w", "method": "ours", "status": "missing", "reason": folder.name}
            about = {"problems": [problem], "notes": [], "subjects": dict.fromkeys(SEQUENCES, 2), "code_version": "1"}
            measures = {name: {"psnr": {"value": psnr}} for name in SEQUENCES}
            evaluation = {"about": about, "differences": {}, **dict.fromkeys(methods, measures)}
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return 0


def test_the_target_is_moved_to_scored_and_drawn(tmp_path: Path) -> None:
    run_command = Recorder()
    demo.run(str(tmp_path / "out"), CONFIG, run_command)
    commands = run_command.lines
    root = tmp_path / "out"
    names = ["phantom", "harmonize", "manifest", "prepare", "train-global", "harmonize"]
    assert [line[0] for line in commands] == [*names, "train-target", "harmonize", "evaluate", "evaluate"]
    unified, moved = str(root / "harmonized"), str(root / "target")
    assert "--model" not in commands[1]
    assert commands[7][1:3] == [str(root / "bids"), moved]
    assert commands[7][commands[7].index("--target") + 1] == "alder"
    assert {f"raw={root / 'manifest.parquet'}", f"ours={moved}", f"global={unified}"} <= set(commands[8])
    assert commands[8][commands[8].index("--target") + 1] == "alder"
    assert f"ours_target={moved}" in commands[9]
    assert "--target" not in commands[9]
    metrics = json.loads((root / "metrics.json").read_text())
    for sequence in SEQUENCES:
        assert metrics[sequence]["harmonized"]["psnr"] == 30.0
        for method in ("target_raw", "target_n4_histogram_matching", "target_global", "target_harmonized"):
            assert metrics[sequence][method]["psnr"] == 20.0
        assert (root / "figures" / f"target_{sequence}.png").read_text() == "evaluation-target"
        assert (root / "figures" / f"{sequence}_before_after.png").read_text() == "evaluation"
    assert {problem["reason"] for problem in metrics["missing"]} == {"evaluation", "evaluation-target"}


def test_without_a_target_there_is_no_target_stage(tmp_path: Path) -> None:
    run_command = Recorder()
    demo.run(str(tmp_path), Config(), run_command)
    assert "train-target" not in {line[0] for line in run_command.lines}
    assert not [line for line in run_command.lines if "--target" in line]
    assert "target_raw" not in json.loads((tmp_path / "metrics.json").read_text())["T1w"]


def test_a_command_that_fails_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mmh prepare ended with code 1"):
        demo.run(str(tmp_path), CONFIG, lambda line: int(line[0] == "prepare"))
