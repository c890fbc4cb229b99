"""Untrusted YAML gives plain values or a quick error, which is exit code 2 of the command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmh_ray.cli import main
from mmh_ray.config import Config, load_config
from mmh_ray.errors import ConfigError
from mmh_ray.yaml_text import DEEPEST, MOST_BYTES, PlainError, load_yaml

pytestmark = pytest.mark.fast

BOMB = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
HOSTILE = {
    "alias bomb": BOMB,
    "anchor": "train: &anchor {steps: 3}",
    "alias to itself": "train: &a [*a]",
    "unknown alias": "train: *nobody",
    "merge key": "train: {<<: {steps: 3}}",
    "tag !!int abc": "train: {steps: !!int abc}",
    "tag !!timestamp": "train: {run_name: !!timestamp abc}",
    "tag !!float": "train: {learning_rate: !!float x}",
    "tag !!binary": "train: {run_name: !!binary '%%%'}",
    "tag !!set": "train: !!set {steps}",
    "tag !!omap": "train: !!omap [1]",
    "tag !!python": "train: !!python/object/apply:os.system [false]",
    "tag !": "train: ! {steps: 3}",
    "own tag": "train: !mine {steps: 3}",
    "a key twice": "train: {steps: 3, steps: 4}",
    "a section twice": "train: {steps: 3}\ntrain: {seed: 1}",
    "a list as key": "? [a, b]\n: 3",
    "a mapping as key": "{{a: 1}: 2}",
    "a number as key": "1: {steps: 3}",
    "null as key": "~: {steps: 3}",
    "true as key": "yes: {steps: 3}",
    "a date as key": "2024-01-01: 3",
    "400 digits": f"train: {{steps: {'9' * 400}}}",
    "100,000 digits": f"train: {{steps: {'9' * 100_000}}}",
    "a float of 400 digits": f"train: {{learning_rate: {'9' * 400}.0}}",
    "digits as text": f"train: {{learning_rate: '{'9' * 400}'}}",
    "hexadecimal": f"train: {{steps: 0x{'f' * 10_000}}}",
    "binary without digits": "train: {steps: 0b_}",
    "to the base of sixty": f"train: {{steps: 1{':59' * 20_000}}}",
    "lists in lists": "[" * 50_000,
    "closed lists in lists": "[" * 50_000 + "]" * 50_000,
    "mappings in mappings": "{a: " * 30_000,
    "block in block": "".join(f"{' ' * n}a:\n" for n in range(400)),
    "lists in a block": "- " * 50_000,
    "keys of keys": "? " * 50_000,
    "two documents": "train: {steps: 3}\n---\ntrain: {steps: 4}",
    "a tab": "train:\n\tsteps: 3",
    "a control character": "train: {run_name: a\x07b}",
    "an escaped one": 'train: {run_name: "a\\x07b"}',
    "an escaped surrogate": 'train: {run_name: "\\ud800"}',
    "an escape beyond Unicode": 'train: {run_name: "\\UFFFFFFFF"}',
    "an escape cut short": 'train: {run_name: "\\x',
    "a version of its own": "%YAML 99.9\n---\ntrain: {}",
    "a directive": "%TAG ! tag:evil,2000:\n---\n!x {}",
    "too long": "# " + "x" * MOST_BYTES,
    "a list": "- train",
    "an empty list": "[]",
    "a number": "0",
    "false": "false",
    "a text": "train",
    "an empty text": "''",
    "a section without keys": "train:",
    "a section that is a list": "train: [steps]",
    "a date for a number": "train: {steps: 2024-01-01}",
    "a day that is none": "train: {steps: 2024-13-45}",
    "a time for a number": "train: {steps: 2024-01-01 25:61:61}",
    "a mapping for a number": "train: {steps: {a: 1}}",
    "unclosed": "train: [unclosed",
}


def hostile() -> Any:
    return pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


@hostile()
def test_a_file_is_refused_in_good_time(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.seed=3"])  # which looks into what the file gave
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 1500


def test_every_error_becomes_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    for name, text in HOSTILE.items():
        path.write_text(text, encoding="utf-8")
        assert main(["phantom", str(tmp_path / "out"), "--config", str(path)]) == 2, name
        assert capsys.readouterr().err.startswith("mmh phantom: "), name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!int abc",
        "&a 3",
        "*a",
        "2024-01-01",
        "9" * 400,
        "9" * 10_000,
        "0b_",
        "[" * 10_000,
        "{a: 1, a: 2}",
        "3\n---\n4",
        "\x07",
        "\ud800",
        "0x" + "f" * 5000,
        "x" * (MOST_BYTES + 1),
        "",
    ],
    ids=lambda value: repr(value[:12]),
)
def test_an_override_is_read_in_the_same_way(value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [f"train.steps={value}"])
    assert main(["phantom", str(tmp_path / "out"), f"train.steps={value}"]) == 2
    assert "train.steps" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "zeros", "folder", "missing", "loop", "not UTF-8"])
def test_a_file_that_is_none_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "not UTF-8":
        path.write_bytes(b"train: {run_name: caf\xe9}")
    assert main(["phantom", str(tmp_path / "out"), "--config", str(path)]) == 2


def test_plain_values_are_read_as_ever() -> None:
    text = "a: [1, -2, 1_000, 1.5, 1.0e-3, .5, true, no, null, ~, text]\nb: {c: 'yes', d: \"1\"}\ne:\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(text.encode("utf-16")) == yaml.safe_load(text)
    assert load_yaml("") is load_yaml("# nothing\n") is None


@pytest.mark.parametrize("text", ["2024-01-01", "007", "12:30:45", "0x1f", "2e-3", "=", "1__0", "+", "."])
def test_what_could_be_a_name_stays_text(text: str) -> None:
    assert load_yaml(text) == text


def test_a_site_that_is_named_like_a_date_or_a_number_is_that_site() -> None:
    assert load_config(None, ["target.site=[2024-01-01, 007]"]).target.site == ("2024-01-01", "007")


def test_the_deepest_nesting_that_is_read() -> None:
    assert load_yaml("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(PlainError, match="levels of nesting in line 1"):
        load_yaml("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


def test_a_duplicate_names_its_key_and_its_place() -> None:
    with pytest.raises(PlainError, match=r"'steps' a second time in line 3, column 3"):
        load_yaml("train:\n  steps: 3\n  steps: 4\n")


def test_a_mapping_as_override_leaves_the_rest_of_its_section(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {steps: 7, seed: 3}\n")
    config = load_config(path, ["train={steps: 8}"])
    assert (config.train.steps, config.train.seed) == (8, 3)
    assert load_config(None, ["train={}"]) == Config()
