"""Settings from strangers: YAML files, overrides, whole command lines."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
from hypothesis import strategies as st

from mmh_ray.cli import parse
from mmh_ray.config import Config, flatten, load_config, to_dict
from tests.fuzz.conftest import Guard
from tests.fuzz.mutations import TEXTS, Edit, as_json, byte_edits, edited, fuzz, reshaped, tree_edits

pytestmark = pytest.mark.slow

SETTINGS = to_dict(Config())
BLOCK = b"""\
# settings of a run
grid:
  spacing_mm: 2
  shape: [96, 112, 96]
train: {steps: 7, seed: 3, learning_rate: 2e-4}
prepare:
    skull: "strip"
harmonize:
  space: native
  intensity: 'unit'
model:
  sequences:
  - T1w
  - T2w
tracking:
  uri: |
    sqlite:///a.db
"""
PIECES = (
    *(word + b" " for word in b"&a *a !!int ? - : ~ # [ ' 0x1F 1:30:00 .inf -.nan 1_000 2001-01-01".split()),
    *(b"<<: *a\n", b"!!python/object/apply:os.system [ls]\n", b"|\n", b">2-\n"),
    *(b"%YAML 9.9\n---\n", b"...\n", b"---\n"),
    *(b"\t", b"{" * 3000, b"9" * 60, b'"\\U00110000"', b'"\\x', b"\xff\xfe", b"\x85", b"\xe2\x80\xa8"),
)
KEYS = (*flatten(Config()), "train", "grid.shape.x", "train.stepz", "", ".", "train..steps", "a" * 5000)
VALUES = (
    *("1", "-1", "0", "1e400", "nan", ".inf", "true", "null", "~", "[", "'", "T1w", "1:30", "2e-3", "0x10"),
    *("{a:1}", "{steps:3}", "!!python/name:os.system"),
    *("", "[1, 2, 3]", "{a: 1}", "{steps: 3}", "&a [*a]", "- 1", "a: b: c", "[" * 3000, "9" * 50, "9" * 6000, *TEXTS),
)
COMMANDS = (
    *("manifest", "prepare", "train-global", "train-target", "harmonize", "status", "evaluate", "promote"),
    *("demo", "phantom"),
)
WORDS = (
    *("--help", "--version", "--verbose", "--config", "--out", "--archive", "--dry-run", "--target", "--if"),
    *("--report", "--", "-", "-1", "raw=/", "/", ".", "models:/mmh-global@champion", "model=x", "--space"),
    *("native", "--skull", "sideways"),
)
ARGUMENTS = tuple(text for text in (*COMMANDS, *WORDS, *TEXTS) if "\0" not in text)

overrides = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=20))


@fuzz(tree=tree_edits(), edits=byte_edits(PIECES, 1), section=st.sampled_from(sorted(SETTINGS)))
def test_trees(guard: Guard, section: str, tree: list[Edit], edits: list[Edit]) -> None:
    path = guard.folder / "settings.yaml"
    content = as_json(reshaped({section: copy.deepcopy(SETTINGS[section])}, tree))
    path.write_bytes(edited(content, edits))
    guard(lambda: load_config(path))


@fuzz(edits=byte_edits(PIECES), given=st.lists(overrides, max_size=2))
def test_texts(guard: Guard, edits: list[Edit], given: list[str]) -> None:
    path = guard.folder / "settings.yaml"
    path.write_bytes(edited(BLOCK, edits))
    guard(lambda: load_config(path), lambda: load_config(path, given), lambda: load_config(None, given))


def parse_and_load(line: list[str]) -> None:
    """As `mmh` begins; a line that makes no sense ends it with exit code 2, a question for help with 0."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            invocation = parse(line)
        except SystemExit as end:
            if end.code not in (0, 2):
                raise
            return
    load_config(invocation.config, invocation.overrides)


@fuzz(
    command=st.sampled_from(COMMANDS),
    line=st.lists(st.sampled_from(ARGUMENTS) | overrides.filter(lambda text: "\0" not in text), max_size=6),
)
def test_command_lines(guard: Guard, command: str, line: list[str]) -> None:
    guard(lambda: parse_and_load([command, *line]))
