"""Every field of the settings has bounds, and values outside them are refused, from files and from code."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
from annotated_types import Interval, Len
from pydantic import Strict
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from mmh_ray.config import Config, GridConfig, HarmonizeConfig, TrainConfig, from_dict, load_config, to_dict
from mmh_ray.config.refusals import require
from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.errors import ConfigError

pytestmark = pytest.mark.fast

SECTIONS = typing.get_type_hints(Config)
HINTS = {
    (section, name): hint
    for section, section_class in SECTIONS.items()
    for name, hint in typing.get_type_hints(section_class, include_extras=True).items()
}
"""Type of every field, with its bounds."""
NOT_FINITE = [math.nan, math.inf, -math.inf]
TOO_LARGE = [10**18, 10**400, -(10**18), 2**64]


class Part(NamedTuple):
    """A plain type within a field's type, with its own constraints."""

    kind: Any
    constraints: tuple[Any, ...]


def parts(hint: Any) -> Iterator[Part]:
    """The type of a field itself, and that of its items."""
    constraints: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        constraints = hint.__metadata__
        hint = hint.__origin__
    kind = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        yield from parts(arguments[0])
    elif kind is tuple:
        yield Part(tuple if arguments[-1] is Ellipsis else "fixed", constraints)
        yield from parts(arguments[0])
    else:
        yield Part(kind or hint, constraints)


def is_bounded(part: Part) -> bool:
    """Whether only values of the right type and within limits are accepted for this part."""
    if part.kind in (int, float):
        ranges = [one for one in part.constraints if isinstance(one, Interval)]
        has_both_ends = any({one.ge, one.gt} != {None} and {one.le, one.lt} != {None} for one in ranges)
        return has_both_ends and Strict() in part.constraints
    if part.kind is str:
        return any(isinstance(one, FieldInfo) and one.description for one in part.constraints)
    if part.kind is tuple:
        return any(isinstance(one, Len) and one.max_length is not None for one in part.constraints)
    if part.kind is bool:
        return Strict() in part.constraints
    return part.kind in (Literal, "fixed")


def with_value(section: str, name: str, value: Any) -> dict[str, Any]:
    """Plain settings in which one number, or one item of a tuple of numbers, has another value."""
    tree = to_dict(Config())
    known = tree[section][name]
    tree[section][name] = [value, *known[1:]] if isinstance(known, list) else value
    return tree


NUMBERS = [field for field, hint in HINTS.items() if {part.kind for part in parts(hint)} & {int, float}]
"""Fields that are, or hold, a number."""


def test_there_are_numbers_in_the_settings() -> None:
    assert len(NUMBERS) > 70


@pytest.mark.parametrize("hint", HINTS.values(), ids=[".".join(field) for field in HINTS])
def test_every_field_has_bounds(hint: Any) -> None:
    assert all(is_bounded(part) for part in parts(hint))


@pytest.mark.parametrize(
    "hint", [int, str, bool, tuple[int, ...], Annotated[int, Strict(), Interval(ge=0)], int | None]
)
def test_a_field_without_bounds_would_be_noticed(hint: Any) -> None:
    assert not all(is_bounded(part) for part in parts(hint))


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_no_number_is_taken_that_is_not_finite_or_absurd(section: str, name: str) -> None:
    for value in (*NOT_FINITE, *TOO_LARGE):
        with pytest.raises(ConfigError) as caught:
            from_dict(Config, with_value(section, name, value))
        assert f"{section}.{name}" in caught.value.received
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(("section", "name"), NUMBERS)
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


def test_sections_made_in_code_hold_the_types_they_name() -> None:
    assert GridConfig(spacing_mm=2, shape=[8, 16, 24]) == GridConfig(spacing_mm=2.0, shape=(8, 16, 24))
    with pytest.raises(ConfigError, match=r"unknown key train\.stepz.*Did you mean train\.steps"):
        TrainConfig(stepz=1)
    with pytest.raises(ConfigError, match="train=3; expected a mapping"):
        Config(train=3)


def test_sections_are_frozen_dataclasses_that_can_be_hashed_copied_and_sent() -> None:
    config = load_config(None, ["train.steps=3", "model.sequences=[FLAIR]"])
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert {config: 1}[copy.deepcopy(config)] == 1
    assert dataclasses.asdict(config)["model"]["sequences"] == ("FLAIR",)
    assert dataclasses.replace(config, train=TrainConfig()) != config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 4


def test_errors_show_nothing_of_pydantic() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps=0)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_field_without_bounds_still_takes_no_number_that_is_not_finite() -> None:
    @dataclass(frozen=True, config=SETTINGS)
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
