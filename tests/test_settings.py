"""Bounds of settings: every field has them, nothing beyond them is taken, from whatever side it comes."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from mmh_ray.config import Config, HarmonizeConfig, TrainConfig, load_config
from mmh_ray.errors import ConfigError
from mmh_ray.settings import Items, Matching, Range, Section, from_dict, hints_of, require, to_dict

pytestmark = pytest.mark.fast

SECTIONS = hints_of(Config)
FIELDS = [(section, name) for section, kind in SECTIONS.items() for name in hints_of(kind)]
NOT_FINITE = [math.nan, math.inf, -math.inf]
TOO_LARGE = [10**18, 10**400, -(10**18), 2**64]


def parts(hint: Any) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """Plain types within a field's type, each with its own bounds."""
    bounds: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *found = typing.get_args(hint)
        bounds = tuple(found)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        yield from parts(typing.get_args(hint)[0])
    elif typing.get_origin(hint) is tuple:
        yield tuple, bounds
        yield from parts(typing.get_args(hint)[0])
    elif typing.get_origin(hint) is Literal:
        yield Literal, bounds  # type: ignore[misc]
    else:
        yield hint, bounds


def with_value(section: str, name: str, value: Any) -> dict[str, Any]:
    """Plain settings in which one number, or one item of a tuple of numbers, has another value."""
    tree = to_dict(Config())
    known = tree[section][name]
    tree[section][name] = [value, *known[1:]] if isinstance(known, list) else value
    return tree


def numbers() -> list[tuple[str, str]]:
    """Fields that are, or hold, a number."""
    kinds = {field: {kind for kind, _ in parts(hints_of(SECTIONS[field[0]])[field[1]])} for field in FIELDS}
    return [field for field, found in kinds.items() if found & {int, float}]


def test_there_are_numbers_in_the_settings() -> None:
    assert len(numbers()) > 70


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_has_bounds(section: str, name: str) -> None:
    hint = hints_of(SECTIONS[section])[name]
    for kind, bounds in parts(hint):
        if kind in (int, float):
            assert any(isinstance(bound, Range) for bound in bounds), "a number without a Range"
        elif kind is str:
            assert any(isinstance(bound, Matching) for bound in bounds), "a text without a form"
        elif kind is tuple and Ellipsis in typing.get_args(typing.get_args(hint)[0]):
            assert any(isinstance(bound, Items) for bound in bounds), "a tuple of any length"


@pytest.mark.parametrize(("section", "name"), numbers())
def test_no_number_is_taken_that_is_not_finite_or_absurd(section: str, name: str) -> None:
    for value in (*NOT_FINITE, *TOO_LARGE):
        with pytest.raises(ConfigError) as caught:
            from_dict(Config, with_value(section, name, value))
        assert f"{section}.{name}" in caught.value.received
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(("section", "name"), numbers())
def test_nor_where_settings_are_made_in_code(section: str, name: str) -> None:
    known = getattr(getattr(Config(), section), name)
    for value in (math.nan, math.inf, 10**18):
        other = (value, *known[1:]) if isinstance(known, tuple) else value
        with pytest.raises(ConfigError, match=rf"{section}\.{name}"):
            dataclasses.replace(getattr(Config(), section), **{name: other})


@pytest.mark.parametrize("text", ["nan", ".nan", "inf", "-.inf", "Infinity", "1.0e+999", "1e999", "-1e999", "'nan'"])
def test_no_spelling_of_what_is_not_finite_is_taken(text: str) -> None:
    for key in ("train.learning_rate", "quality.least_fit", "harmonize.timeout_s"):
        with pytest.raises(ConfigError, match=key):
            load_config(None, [f"{key}={text}"])
    with pytest.raises(ConfigError, match=r"quality\.brain_ml"):
        load_config(None, [f"quality.brain_ml=[0, {text}]"])


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=-1",
        "train.learning_rate=0",
        "train.ema_decay=1",  # the average would never move
        "train.seed=4294967296",
        "train.run_name=../other",
        "train.run_name=..",
        "train.run_name=''",
        "model.channels=[12, 16]",
        "model.channels=[]",
        "model.distances=[]",
        "model.sequences=[../T1w]",
        "model.sequences=[T1w, T1w]",
        "model.beta_start=0.5",
        "model.train_timesteps=1",
        "grid.shape=[1024, 1024, 1024]",
        "grid.shape=[8000000000, 8, 8]",
        "harmonize.planes=[axial, axial]",
        "harmonize.planes=[]",
        "target.site=['']",
        "target.rank=1000000000",
        "tracking.alias=a b",
        "tracking.model_name=a/b",
        "restyle.blur_mm=-1",
        "style.temperature=0",
        'train.storage="a\\0b"',
        'target.site="a\\nb"',
    ],
)
def test_what_can_only_be_a_mistake_is_refused_by_its_key(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert override.partition("=")[0] in caught.value.received


def test_numbers_of_numpy_are_numbers() -> None:
    assert TrainConfig(steps=np.int64(3), learning_rate=np.float64(1e-3)).steps == 3
    with pytest.raises(ConfigError, match=r"harmonize\.timeout_s=.*nan"):
        HarmonizeConfig(timeout_s=np.float32("nan"))


def test_a_field_without_bounds_still_takes_no_number_that_is_not_finite() -> None:
    @dataclasses.dataclass(frozen=True)
    class Plain(Section):
        value: float = 1.0

    with pytest.raises(ConfigError, match=r"plain\.value=nan; expected a finite number"):
        Plain(math.nan)


def test_errors_are_short_whatever_was_received() -> None:
    for value in ("x" * 10**6, 16**10_000, [[0] * 10**5]):
        with pytest.raises(ConfigError) as caught:
            require(False, "a.b", value, "less")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("tree", [[], 3, "text", None, {1: 2}, {"train": {None: 1}}, {"x" * 10**6: 1}])
def test_what_is_no_tree_of_settings_is_refused(tree: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, tree)
    assert len(str(caught.value)) < 1000
