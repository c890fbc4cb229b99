"""Random edits of valid content: of its bytes, of numbers at known offsets, and of trees of plain values.

An edit does not depend on the content. Its place is any number, taken modulo the number of places in the content, so
that Hypothesis can shrink a failing input.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("MMH_FUZZ", "100"))
"""Number of inputs for each test."""
SEED = int(os.environ.get("MMH_FUZZ_SEED", random.SystemRandom().randrange(2**31) if "MMH_FUZZ" in os.environ else 0))
"""Fixed without MMH_FUZZ; otherwise new in every run."""

DEEP, LONG, TWICE = "@deep@", "@long@", "@twice@"
"""Placeholders for JSON that `json.dumps` cannot write: very deep nesting, a very long integer, a duplicate key."""
_WRITTEN = {f'"{DEEP}"': "[" * 20_000 + "]" * 20_000, f'"{LONG}"': "9" * 5000, TWICE: ""}

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53 + 1, 2**63, -(2**64), 10**400),
    *(0.5, -0.0, 5e-324, 1e-45, 3.5e38, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", " ", "\0", "\ud800", "\u202e\u0301", "x" * 5000, "é" * 300, "a\tb\nc", "\x1b[31m", "n/a", "2e3", "NaN"),
    *("../outside", "../../outside", "sub-1/../../outside", "/", "~", "file:///etc", "<script>", "{{7*7}}", "%s{0}"),
    *([], {}, [None], [[]], [0] * 2000, ["x"] * 3, {"": None}, {"x": {"y": [1]}}, DEEP, LONG),
    *("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59-23:59"),
)
TEXTS = tuple(value for value in NASTY if isinstance(value, str))
NUMBERS = (
    *(0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 16, 64, 127, 128, 255, 256, 348, 352, 540, 544, 1000, 32767, -32768, 65535),
    *(2**24, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63), 0.5, -0.001, 1e-45, 1e38, 1e308),
    *(math.nan, math.inf, -math.inf),
)
_PACKED = tuple(
    struct.pack(order + kind, number)
    for order in "<>"
    for kind, numbers in {
        "h": (-1, 32767),
        "i": (-1, 2**31 - 1),
        "q": (-1, 2**40, 2**63 - 1),
        "d": (math.nan, 1e308),
    }.items()
    for number in numbers
)


class Edit(NamedTuple):
    """One change: its kind, its place, and its value."""

    act: str
    at: int
    value: Any


class Spot(NamedTuple):
    """Offset of a number in a file, and its type."""

    at: int
    kind: np.dtype


def fuzz(
    share: float = 1, **strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with :data:`INPUTS` inputs from these strategies, or with a share of them if they are slow."""
    # The guard measures time, without that of generating the input; nothing is stored in the checkout.
    profile = settings(
        max_examples=math.ceil(share * INPUTS), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        return seed(SEED)(profile(given(**strategies)(test)))

    return decorated


_at = st.integers(0, 2**16)
_some_bytes = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(_PACKED))


def _edit(act: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[Edit]:
    return st.builds(Edit, st.just(act), _at, value)


def byte_edits(inserted: Sequence[bytes] = (b"\0" * 20,), most: int = 3) -> st.SearchStrategy[list[Edit]]:
    """Bytes are replaced, inserted, cut off, removed or repeated; sometimes all are replaced by random bytes."""
    kinds = (
        _edit("replace", _some_bytes),
        _edit("insert", st.one_of(_some_bytes, st.sampled_from(inserted))),
        _edit("cut", st.none()),
        _edit("remove", st.integers(1, 64)),
        _edit("repeat", st.integers(1, 64)),
        _edit("everything", st.binary(max_size=600)),
    )
    return st.lists(st.one_of(kinds), max_size=most)


def spot_edits() -> st.SearchStrategy[list[Edit]]:
    """Other numbers at known offsets."""
    return st.lists(_edit("number", st.sampled_from(NUMBERS) | st.integers(-70_000, 70_000)), max_size=3)


def tree_edits(values: Sequence[Any] = NASTY) -> st.SearchStrategy[list[Edit]]:
    """Values are replaced by nasty ones; keys and items are removed, duplicated or renamed."""
    nasty = st.sampled_from(values)
    kinds = (
        _edit("value", nasty),
        _edit("twice", nasty),
        _edit("rename", st.sampled_from(TEXTS)),
        _edit("drop", st.none()),
    )
    return st.lists(st.one_of(kinds), max_size=4)


def edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Content after edits of its bytes."""
    for act, place, value in edits:
        at = place % (len(content) + 1)
        if act == "replace":
            content = content[:at] + value + content[at + len(value) :]
        elif act == "insert":
            content = content[:at] + value + content[at:]
        elif act == "cut":
            content = content[:at]
        elif act == "remove":
            content = content[:at] + content[at + value :]
        elif act == "repeat":
            content = content[:at] + content[at : at + value] * 20 + content[at:]
        else:
            content = value
    return content


def renumbered(content: bytes, edits: Sequence[Edit], spots: Sequence[Spot]) -> bytes:
    """Content with other numbers in some of its spots."""
    for _, place, value in edits:
        at, kind = spots[place % len(spots)]
        with np.errstate(all="ignore"):
            packed = np.array([value], np.float64).astype(kind).tobytes()
        content = content[:at] + packed + content[at + len(packed) :]
    return content


def reshaped(tree: Any, edits: Sequence[Edit]) -> Any:
    """A tree of plain values after edits, changed in place; an edit may also replace the whole tree."""
    for act, place, chosen in edits:
        value = copy.deepcopy(chosen)  # a later edit may change its items
        places = [(None, None), *_places(tree)]
        holder, key = places[place % len(places)]
        if holder is None:
            tree = value if act == "value" and place % 8 == 0 else tree
        elif act == "value":
            holder[key] = value
        elif act == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, holder[key] if act == "twice" else value)
        elif act == "twice":
            holder[f"{key}{TWICE}"] = value
        else:
            holder[value] = holder.pop(key)
    return tree


def as_json(tree: Any) -> bytes:
    """A tree as JSON, with NaN, lone surrogates, deep nesting and duplicate keys."""
    text = json.dumps(tree)
    for mark, written in _WRITTEN.items():
        text = text.replace(mark, written)
    return text.encode()


def as_table(tree: Any) -> bytes:
    """Rows of cells as tab-separated text."""
    rows = tree if isinstance(tree, list) else [tree]
    lines = ["\t".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows]
    return "\n".join(lines).encode(errors="surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its keys; only the first items of long lists."""
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)
    elif isinstance(tree, list):
        keys = list(range(min(len(tree), 8)))
    else:
        return
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
