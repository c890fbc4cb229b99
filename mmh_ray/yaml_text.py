"""Reads the part of YAML that settings need, from untrusted text: one document of plain values.

PyYAML's safe loader runs no code, but it accepts much that settings never need and that costs time or memory or raises
odd errors: aliases (a kilobyte can expand to gigabytes), tags (``!!int abc``), dates, base-60 numbers, and repeated
keys, of which it silently keeps the last. All of these are refused or read as text here.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

MOST_BYTES = 128 * 2**10
"""Largest text in bytes: PyYAML takes about a second for it."""

DEEPEST = 20
"""Most levels of nesting."""

LONGEST_NUMBER = 40
"""Most characters of a number."""

_TEXT = "tag:yaml.org,2002:str"


class PlainError(yaml.YAMLError):
    """YAML that is too long or uses a feature that is not supported here."""


def load_yaml(text: bytes | str) -> Any:
    """Value of a YAML document: text, numbers, true and false, null, lists, and dicts with text keys.

    Dates are read as text, and so are numbers with a leading zero (``007`` may be a site).

    Raises
    ------
    PlainError, yaml.YAMLError
        If it is not YAML, is too long or nested too deeply, or has an alias, anchor, tag, repeated key or a key that is
        not text.
    """
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if len(content) > MOST_BYTES:
        raise PlainError(f"{len(content)} bytes, more than the {MOST_BYTES} that are read")
    try:
        return yaml.load(text, _PlainLoader)
    except (ValueError, OverflowError, IndexError, RecursionError) as error:  # from PyYAML: bad escapes, directives
        raise PlainError(f"{type(error).__name__}: {error}") from error


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without the features that :func:`load_yaml` refuses."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # filled below

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; PlainError unless it is plain."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise PlainError(f"an anchor or alias{_place(event)}; write the value out where it is used")
        if event.tag is not None:
            raise PlainError(f"a tag, {event.tag[:40]!r}{_place(event)}; leave it out")
        if self._depth == DEEPEST:
            raise PlainError(f"more than {DEEPEST} levels of nesting{_place(event)}")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """A mapping with text keys, each given once."""
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TEXT:
                raise PlainError(f"a key that is not text{_place(key_node)}; put it in quotes")
            if key_node.value in mapping:
                raise PlainError(f"{key_node.value[:100]!r} a second time{_place(key_node)}; give every key once")
            mapping[key_node.value] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """An int or a float of at most :data:`LONGEST_NUMBER` characters."""
        length = len(node.value)
        if length > LONGEST_NUMBER:
            raise PlainError(f"a number of {length} characters{_place(node)}")
        if node.tag.endswith("int"):
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


def _place(node: Any) -> str:
    """Position of an event or a node, for an error."""
    line = node.start_mark.line + 1
    column = node.start_mark.column + 1
    return f" in line {line}, column {column}"


# Types of unquoted text: YAML 1.1 without dates, octal and base-60 numbers, and `<<`.
for _kind, _pattern, _first in (
    ("bool", r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)$", "-+0123456789"),
    (
        "float",
        r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list(_first))
for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.construct_number)
