"""Self-contained HTML pages: one file, no network, every name escaped, no script but our own."""

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
"""Pictures that a page may hold."""


def write_page(
    path: str | Path, template: str, styles: Sequence[str], scripts: Sequence[str], context: Mapping[str, Any]
) -> None:
    """Render a template with style sheets and scripts of the same folder inside it; the page is whole or not there.

    The template finds them as ``style`` and ``script`` and what its content security policy must allow as
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
    """The files of these names in the folder of templates, one after the other."""
    sources = []
    for name in names:
        source, _, _ = loader.get_source(environment, name)
        sources.append(source)
    return "".join(sources)


def data_uri(path: Path) -> str:
    """A picture as text that can stand in a page."""
    content_type = TYPES[path.suffix.lower()]
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{content_type};base64,{content}"


def policy_hash(source: str) -> str:
    """The source expression of a content security policy that allows exactly this inline text."""
    digest = hashlib.sha256(source.encode()).digest()
    encoded = base64.b64encode(digest).decode()
    return f"sha256-{encoded}"
