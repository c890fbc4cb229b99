"""Writes self-contained HTML pages: one file, no network access, all text escaped, only our own scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmh_ray.provenance import whole_file

TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
"""Media types of the pictures that a page may contain, by file ending."""


def write_page(
    path: str | Path, template: str, styles: Sequence[str], scripts: Sequence[str], context: Mapping[str, Any]
) -> None:
    """Render a template with its style sheets and scripts inlined; the file appears whole or not at all.

    The template receives them as ``style`` and ``script``, and their hashes for its content security policy as
    ``style_hash`` and ``script_hash``.
    """
    loader = PackageLoader("mmh_ray", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["moment"] = lambda iso: iso.replace("T", " ")[:19] + " UTC"
    environment.filters["thousands"] = lambda number: f"{number:,}"
    style = _sources(loader, environment, styles)
    script = _sources(loader, environment, scripts)
    parts_of_page = {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": policy_hash(style),
        "script_hash": policy_hash(script),
    }
    page = environment.get_template(template).render(context, **parts_of_page)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def _sources(loader: PackageLoader, environment: Environment, names: Sequence[str]) -> str:
    """Content of these files of the template folder, joined."""
    sources = []
    for name in names:
        source, _, _ = loader.get_source(environment, name)
        sources.append(source)
    return "".join(sources)


def data_uri(path: Path) -> str:
    """A picture as a ``data:`` URI."""
    content_type = TYPES[path.suffix.lower()]
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{content_type};base64,{content}"


def policy_hash(source: str) -> str:
    """Source expression that allows exactly this inline text in a content security policy."""
    digest = hashlib.sha256(source.encode()).digest()
    encoded = base64.b64encode(digest).decode()
    return f"sha256-{encoded}"
