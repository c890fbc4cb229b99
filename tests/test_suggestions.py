"""Mistyped commands, options, values and settings: the word that was meant is named."""

from __future__ import annotations

import pytest

from mmh_ray.cli import main
from mmh_ray.suggestions import nearest

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["harmonise", "bids", "out"], "harmonize"),
        (["train_global", "prepared"], "train-global"),
        (["harmonize", ".", "out", "--participant-lable", "01"], "--participant-label"),
        (["harmonize", ".", "out", "--dryrun=yes"], "--dry-run"),
        (["harmonize", ".", "out", "--space", "natve"], "native"),
    ],
)
def test_the_word_that_was_meant_is_named(argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize(("override", "meant"), [("trains.steps=1", "train"), ("train.setps=1", "train.steps")])
def test_the_setting_that_was_meant_is_named(override: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-global", override]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"Did you mean {meant}?")


def test_nothing_is_guessed_where_nothing_is_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert nearest("xyzzy", ["native", "template"]) is None
    with pytest.raises(SystemExit):
        main(["xyzzy"])
    assert "Did you mean" not in capsys.readouterr().err
