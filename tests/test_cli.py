"""The `mmh` command: help, exit codes and messages, and what reaches the functions behind it."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmh_ray import __version__
from mmh_ray.bids.ledger import LEDGER, LEDGER_SCHEMA, write_ledger
from mmh_ray.bids.status import RunRecord
from mmh_ray.cli import main, parse
from mmh_ray.config import Config, EvaluateConfig, load_config
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.evaluation.promotion.rules import Decision
from mmh_ray.harmonization.job import Job

pytestmark = pytest.mark.fast

COMMANDS = [
    *("phantom", "manifest", "prepare", "train-global", "train-target", "harmonize", "evaluate"),
    *("status", "promote", "demo", "doctor"),
]


@pytest.fixture(autouse=True)
def _levels_as_before(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """`main` sets levels of loggers; other tests must not inherit them."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class Calls(list):
    """Records the calls of a stand-in."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, *arguments: Any) -> Any:
        self.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch):
    """Replace a function that a command imports; returns the list of its calls."""

    modules: dict[str, ModuleType] = {}

    def put(module: str, function: str, answer: Any = None) -> Calls:
        calls = Calls(answer)
        replacement = modules.setdefault(module, ModuleType(module))
        setattr(replacement, function, calls)
        monkeypatch.setitem(sys.modules, module, replacement)
        return calls

    return put


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"Usage: mmh {command}" in text
    assert "section.key=value" in text


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"mmh-ray {__version__}"


@pytest.mark.parametrize("argv", [[], ["harmonise"], ["demo", "--colour"], ["harmonize", "."], ["prepare", "."]])
def test_unusable_arguments_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "Usage: mmh" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["manifest", "nowhere", "m.parquet"], ["evaluate", "--archive", "raw=nowhere"]])
def test_missing_input_exits_with_2_and_names_it(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_input_whose_name_no_disk_takes_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["manifest", "x" * 5000, "m.parquet"])
    assert caught.value.code == 2
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["train-global", ".", "train.stepz=1"], ["train.stepz=1", "train-global", "."]])
def test_unknown_key_exits_with_2_and_lists_the_valid_ones(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("mmh train-global: unknown key train.stepz; expected one of train.steps,")
    assert "Did you mean train.steps?" in message
    assert "Traceback" not in message


def test_missing_config_file_exits_with_2_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_flag_out_of_range_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path / "bids"), "--sites", "9"]) == 2
    assert "phantom.sites=9; expected 1 to 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "harmonize . out participant --model m --sequence T1w harmonize.steps=2 --participant-label 01 sub-02",
        "harmonize . --model m out --participant-label 01 sub-02 harmonize.steps=2 --sequence T1w -- participant",
        "harmonize.steps=2 harmonize --participant-label 01 --sequence T1w --participant-label sub-02 --model m . out",
    ],
)
def test_positionals_and_overrides_stand_anywhere(line: str) -> None:
    invocation = parse(line.split())
    arguments = invocation.arguments
    assert (arguments["bids"], arguments["out"], arguments["model"]) == (".", "out", "m")
    assert arguments["participant_label"] == ("01", "sub-02")
    assert arguments["sequence"] == ("T1w",)
    assert invocation.overrides == ["harmonize.steps=2"]


@pytest.mark.parametrize(
    "line", ["demo --config c.yaml here", "demo here --config c.yaml", "demo -v here --config c.yaml"]
)
def test_an_optional_positional_may_follow_options(line: str) -> None:
    invocation = parse(line.split())
    assert (invocation.arguments["out"], invocation.config) == ("here", "c.yaml")


@pytest.mark.parametrize("line", ["-v demo", "demo -v", "demo --verbose"])
def test_verbose_before_and_after_the_command(line: str) -> None:
    assert parse(line.split()).verbose
    assert not parse(["demo"]).verbose


def test_paths_and_uris_are_not_overrides() -> None:
    invocation = parse(["prepare", "s3://bucket/site=A/m.parquet", "./site=A"])
    assert invocation.arguments == {"manifest": "s3://bucket/site=A/m.parquet", "out": "./site=A"}
    assert not invocation.overrides


def test_what_follows_archive_is_no_override() -> None:
    line = [
        "evaluate",
        "--archive",
        "raw=.",
        "--archive",
        "model=.",
        "--archive=ours=.",
        "--out",
        "out",
        "evaluate.seed=1",
    ]
    invocation = parse(line)
    assert invocation.arguments["archives"] == (("raw", "."), ("model", "."), ("ours", "."))
    assert invocation.arguments["model"] is None
    assert invocation.overrides == ["evaluate.seed=1"]


@pytest.mark.parametrize(
    "line", [f"harmonize . out {rest}" for rest in ("--model --dry-run", "--target -v", "--target")]
)
def test_an_option_without_a_value_does_not_take_the_next_option(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    assert "requires an argument" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["harmonize --sequence T1w . out", "harmonize . --sequence T1w out"])
def test_arguments_that_an_option_took_are_explained(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    assert "'--sequence' took all words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [("harmonise . out", "harmonize"), ("harmonize . out --particpant-label 01", "--participant-label")],
)
def test_a_typo_gets_a_suggestion(line: str, suggestion: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "Did you mean" in message
    assert f"'{suggestion}'" in message


@pytest.mark.parametrize(
    ("words", "word", "completed"),
    [
        ("mmh harm", 1, "harmonize"),
        ("mmh harmonize harmonize.steps=2 --part", 3, "--participant-label"),
        ("mmh harmonize BIDS OUT --space t", 5, "template"),
    ],
)
def test_the_shell_completes_commands_options_and_choices(
    words: str, word: int, completed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MMH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(word))
    with pytest.raises(SystemExit):
        main([])
    assert f"plain,{completed}" in capsys.readouterr().out


def test_phantom_flags_override_the_section(stand_in) -> None:
    calls = stand_in("mmh_ray.distributed.phantom", "make_archive")
    line = "phantom out --sites 2 --subjects-per-site 3 --travelers 1 --spacing 4 --lesions 0 --seed 5 phantom.sites=7"
    assert main(line.split()) == 0
    [(out, phantom)] = calls
    assert out == "out"
    given = ["sites=2", "subjects_per_site=3", "travelers=1", "spacing_mm=4", "lesions=0", "seed=5"]
    assert phantom == load_config(None, [f"phantom.{item}" for item in given]).phantom


def test_manifest_tells_how_many_are_unusable_and_why(
    stand_in, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow

    reasons = ["", None, "c.nii: 4-D image", "d.nii: 4-D image"]
    rows = {"uri": ["a.nii", "b.nii", "c.nii", "d.nii"], "status": ["ok", "ok", *["unusable"] * 2], "reason": reasons}
    stand_in("mmh_ray.distributed.manifest", "build_manifest", pyarrow.table(rows))
    assert main(["manifest", str(tmp_path), "m.parquet"]) == 0
    assert "4 images: 2 ok, 2 unusable" in caplog.text
    assert "2 x 4-D image" in caplog.text


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (2, 1)])
def test_prepare_exits_with_1_when_images_failed(stand_in, tmp_path: Path, failed: int, code: int) -> None:
    calls = stand_in("mmh_ray.distributed.prepare", "prepare", SimpleNamespace(failed=failed))
    assert main(["prepare", str(tmp_path), "out", "grid.spacing_mm=2"]) == code
    assert calls == [(str(tmp_path), "out", load_config(None, ["grid.spacing_mm=2"]))]


def test_train_global_prints_where_the_model_is(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SimpleNamespace(bundle="runs/bundle", model_uri="models:/mmh-global/3")
    stand_in("mmh_ray.distributed.train", "train_global", model)
    assert main(["train-global", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["bundle runs/bundle", "model models:/mmh-global/3"]


@pytest.mark.parametrize(
    ("counts", "code"), [({"done": 2, "skipped": 1}, 0), ({"done": 2, "failed": 1}, 1), ({"refused": 1}, 1)]
)
def test_the_exit_code_of_harmonize_shows_failed_images(
    stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int], code: int
) -> None:
    calls = stand_in("mmh_ray.distributed.harmonize", "harmonize", counts)
    line = ["harmonize", str(tmp_path), "out", "--model", "m", "--participant-label", "sub-01", "02"]
    assert main([*line, "--sequence", "T1w"]) == code
    assert calls == [(Job(str(tmp_path), "out", "m", Config(), ("01", "02"), ("T1w",)),)]
    text = capsys.readouterr().out
    assert f"Harmonized: {counts.get('done', 0)}, in" in text
    assert ("Not harmonized" in text) == bool(code)
    assert f"Where to look: {Path('out/ledger.parquet')}" in text  # there is no report


def test_harmonize_closes_with_reasons_and_places(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only of this run: an image that failed in an earlier run is not reported again."""
    out = tmp_path / "out"
    done = ledger_row("sub-1_T1w", flags=["dark"])
    failed = ledger_row("sub-2_T1w", status="failed", reason="/bids/sub-2_T1w.nii.gz: 4-D image")
    earlier = ledger_row("sub-3_T1w", status="failed", reason="long ago", finished="2020-01-01T00:00:00+00:00")
    write_ledger(out / LEDGER, [done, failed, earlier])
    (out / "report.html").touch()
    stand_in("mmh_ray.distributed.harmonize", "harmonize", {"failed": 1, "done": 1})
    line = ["harmonize", str(tmp_path), str(out)]
    assert main(line) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "Not harmonized: 1 failed, 0 refused",
        "      1 x 4-D image",
        "Flagged, for a person to look at: 1",
        f"Where to look: {out / 'report.html'}",
        "Once the causes are fixed: the same command with --retry-failed",
    ]
    assert main([*line, "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"] == {"done": 1, "failed": 1}
    assert summary["reasons"] == {"4-D image": 1}
    assert (summary["flagged"], summary["report"]) == (1, str(out / "report.html"))


def test_status_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord("/bids", "mmh-base", "b" * 64, "1.0", 3, "2020-01-01T00:00:00+00:00")
    record.write(tmp_path)
    write_ledger(tmp_path / LEDGER, [ledger_row("sub-1_T1w"), ledger_row("sub-2_T1w", status="refused", reason="why")])
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["images"], found["images_done"]) == ("interrupted", 3, 2)
    assert (found["counts"], found["reasons"]) == ({"done": 1, "refused": 1}, {"why": 1})


def ledger_row(image_id: str, **more: Any) -> dict[str, Any]:
    """A row of an endless run, unless ``finished`` gives its time."""
    row: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    row |= {"image_id": image_id, "source": f"/bids/{image_id}.nii.gz", "sequence": "T1w", "status": "done"}
    row |= {"finished": "2999-01-01T00:00:00+00:00", "seconds": 1.0}
    return row | more


def test_flags_of_harmonize_are_settings(stand_in, tmp_path: Path) -> None:
    calls = stand_in("mmh_ray.distributed.harmonize", "harmonize", {})
    flags = "--space template --intensity source --detail model --skull strip --retry-failed harmonize.space=native"
    flags += " --n-procs 3 --mem-gb 12.5 --session-label ses-1 2 --bids-filter-file"
    filter_file = tmp_path / "filter.json"
    filter_file.write_text('{"t1w": {"run": 1}}')
    assert main(["harmonize", str(tmp_path), "out", "--model", "m", *flags.split(), str(filter_file)]) == 0
    [(job,)] = calls
    assert job.retry_failed
    chosen = job.config.harmonize
    assert (chosen.space, chosen.intensity, chosen.detail) == ("template", "source", "model")
    assert job.config.prepare.skull == "strip"
    assert job.config.harmonize.slots == 3
    assert job.config.harmonize.memory_gb == 12.5
    assert job.filters.queries == {"T1w": {"run": (1,)}}
    assert job.sessions == ("1", "2")


def test_a_filter_file_with_an_unknown_key_is_explained(
    stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = stand_in("mmh_ray.distributed.harmonize", "harmonize", {})
    filter_file = tmp_path / "filter.json"
    filter_file.write_text('{"t1w": {"sesion": 1}}')
    assert main(["harmonize", str(tmp_path), "out", "--bids-filter-file", str(filter_file)]) == 2
    assert not calls
    assert "Did you mean 'session'?" in capsys.readouterr().err


def test_level_group_only_writes_the_report_again(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = stand_in("mmh_ray.distributed.harmonize", "harmonize", {})
    out = tmp_path / "out"
    RunRecord("/bids", "mmh-base", "b" * 64, "1.0", 1, "2020-01-01T00:00:00+00:00").write(out)
    write_ledger(out / LEDGER, [ledger_row("sub-1_T1w")])
    assert main(["harmonize", str(tmp_path), str(out), "group"]) == 0
    assert "sub-1_T1w" in (out / "report.html").read_text(encoding="utf-8")
    assert not calls
    assert main(["harmonize", str(tmp_path), str(tmp_path / "nothing"), "group"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_harmonize_takes_targets(stand_in, tmp_path: Path) -> None:
    calls = stand_in("mmh_ray.distributed.harmonize", "harmonize", {})
    reference = tmp_path / "sub-1_T1w.nii.gz"
    reference.touch()
    line = ["harmonize", str(tmp_path), "out", "--model", "m", "--target", "north", "south"]
    assert main([*line, "--target-image", str(reference)]) == 0
    [(job,)] = calls
    assert (job.targets, job.target_image) == (("north", "south"), str(reference))


def test_train_target_prints_every_target(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = SimpleNamespace(site="north", bundle="runs/targets/north", model_uri="models:/mmh-target-north/2")
    calls = stand_in("mmh_ray.distributed.train_target", "train_targets", [made])
    assert main(["train-target", str(tmp_path), "model=m", "target.site=[north, south]", "target.steps=7"]) == 0
    [(prepared, model, config)] = calls
    assert (prepared, model, config.target.site) == (str(tmp_path), "m", ("north", "south"))
    assert config.target.steps == 7
    assert capsys.readouterr().out == "target north: bundle runs/targets/north, model models:/mmh-target-north/2\n"


@pytest.mark.parametrize("name", ["build_manifest", "prepare", "train_global", "train_target", "harmonize", "evaluate"])
def test_a_job_is_its_command(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = repository / "jobs" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(job), "--colour", "target.steps=7"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(job), run_name="__main__")
    assert caught.value.code == 2
    assert f"Usage: mmh {name.removeprefix('build_').replace('_', '-')} " in capsys.readouterr().err


def test_the_job_of_a_target_says_what_is_wrong(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = repository / "jobs" / "train_target.py"
    monkeypatch.setattr(sys, "argv", [str(job), str(repository), "model=m", "target.stepz=7"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(job), run_name="__main__")
    assert caught.value.code == 2
    assert "unknown key target.stepz" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"image_id": "sub-1_T1w", "action": "harmonize", "reason": None},
        {"image_id": "sub-2_FLAIR", "action": "refuse", "reason": "sequence FLAIR"},
    ]
    stand_in("mmh_ray.distributed.harmonize", "plan", rows)
    assert main(["harmonize", str(tmp_path), "out", "--model", "m", "--dry-run"]) == 1
    assert capsys.readouterr().out == "harmonize\tsub-1_T1w\nrefuse\tsub-2_FLAIR\tsequence FLAIR\n"
    stand_in("mmh_ray.distributed.harmonize", "plan", rows[:1])
    assert main(["harmonize", str(tmp_path), "out", "--model", "m", "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["harmonize", str(tmp_path), "out", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows[:1]


def test_evaluate_prints_the_table(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    found = {"ours": {"T1w": {"w1": {"value": 0.5}}}, "differences": {}, "about": {}}
    calls = stand_in("mmh_ray.distributed.evaluate", "evaluate", found)
    table = stand_in("mmh_ray.evaluation.report.table", "as_table", "the table")
    archives = ["--archive", f"raw={folder}", f"--archive=ours={folder}"]
    assert main(["evaluate", *archives, "--out", "out", "--truth", folder, "evaluate.draws=200"]) == 0
    [(given, *rest)] = calls
    assert given == {"raw": folder, "ours": folder}
    assert rest == ["out", Config(evaluate=EvaluateConfig(draws=200)), folder, None, None, None]
    assert table == [({"T1w": {"ours": {"w1": 0.5}}},)]
    assert capsys.readouterr().out == "the table\n"
    assert main(["evaluate", *archives, "--out", "out", "--target", "north"]) == 0
    assert calls[1][-1] == "north"


def test_evaluate_with_a_model_keeps_the_figures_with_it(stand_in, tmp_path: Path) -> None:
    stand_in("mmh_ray.distributed.evaluate", "evaluate", {"about": {}})
    checked = stand_in("mmh_ray.tracking.promotion", "check_model", "models:/m/3")
    kept = stand_in("mmh_ray.tracking.promotion", "keep_with_model", "run")
    archives = ["--archive", f"raw={tmp_path}", "--archive", f"ours={tmp_path}"]
    assert main(["evaluate", *archives, "--out", "out", "--model", "models:/m@candidate"]) == 0
    assert checked == [("models:/m@candidate", {"raw": str(tmp_path), "ours": str(tmp_path)}, Config())]
    assert [call[:3] for call in kept] == [
        ("models:/m/3", "out", Config())
    ]  # then the Ray job, where another test started one


def test_figures_at_a_target_are_not_kept_with_a_model(
    stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = stand_in("mmh_ray.distributed.evaluate", "evaluate", {})
    archives = ["--archive", f"raw={tmp_path}", "--archive", f"ours={tmp_path}"]
    assert main(["evaluate", *archives, "--out", "out", "--target", "north", "--model", "models:/m@candidate"]) == 2
    assert "promotion compares figures that are measured without a target" in capsys.readouterr().err
    assert calls == []


def test_an_archive_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--archive", ".", "--out", "out"])
    assert caught.value.code == 2
    assert "give NAME=FOLDER" in capsys.readouterr().err


def test_two_archives_of_one_name_are_refused(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = stand_in("mmh_ray.distributed.evaluate", "evaluate", {})
    archives = ["--archive", f"ours={tmp_path}", "--archive", f"ours={tmp_path}"]
    assert main(["evaluate", *archives, "--out", "out"]) == 2
    assert "two archives of one name" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_promote_says_why(stand_in, capsys: pytest.CaptureFixture[str], passed: bool, code: int) -> None:
    calls = stand_in("mmh_ray.tracking.promotion", "promote", Decision(passed, ("T1w W1 ↓: kept",), "because"))
    assert main(["promote", "models:/m/3", "--if", "better-than", "champion"]) == code
    assert calls == [("models:/m/3", "champion", Config())]
    assert capsys.readouterr().out == "T1w W1 ↓: kept\nbecause\n"
    assert main(["promote", "models:/m/3", "--if", "worse-than", "champion"]) == 2


@pytest.mark.parametrize(("error", "code"), [(ConfigError("a", "b", "Do c."), 2), (DataError("a", "b", "Do c."), 1)])
def test_errors_become_messages(stand_in, capsys: pytest.CaptureFixture[str], error: Exception, code: int) -> None:
    calls = stand_in("mmh_ray.tracking.promotion", "promote", error)
    assert main(["promote", "models:/m/3", "--if", "better-than", "champion"]) == code
    assert calls == [("models:/m/3", "champion", Config())]
    assert capsys.readouterr().err == "mmh promote: a; expected b. Do c.\n"


@pytest.mark.parametrize(
    ("job", "command"),
    [
        ("build_manifest", "manifest"),
        ("prepare", "prepare"),
        ("train_global", "train-global"),
        ("harmonize", "harmonize"),
        ("evaluate", "evaluate"),
    ],
)
def test_jobs_are_the_same_code(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job: str, command: str
) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", [f"{job}.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(repository / "jobs" / f"{job}.py"), run_name="__main__")
    assert caught.value.code == 0
    assert f"Usage: mmh {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--spacing", "nan"), ("--spacing", "inf"), ("--lesions", "nan"), ("--sites", "1" * 30), ("--seed", "9" * 30)],
)
def test_a_flag_takes_no_number_that_a_setting_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    assert main(["phantom", str(tmp_path / "out"), flag, value]) == 2
    assert "mmh phantom: phantom." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
