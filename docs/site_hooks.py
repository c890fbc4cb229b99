"""Hooks of the documentation site: adds pages that are stored outside `docs/`.

Links in these files work in the repository; here they are changed to the site's own pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
CARDS = {
    "mmh_ray/models/weights/mmh-base/MODEL_CARD.md": "model-card.md",
    "mmh_ray/models/weights/style.md": "style-card.md",
    "mmh_ray/imaging/weights/brain.md": "brain-card.md",
}
"""Cards of the shipped weights, and the names of their pages."""
LINKS = {
    "](../benchmarks)": "](benchmarks/README.md)",
    "](../benchmarks/": "](benchmarks/",
}
"""Replacements in the pages of `docs/`."""
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")
"""A Sphinx role in a docstring; only the name is shown."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of benchmarks/ and the cards of the shipped weights."""
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    for card, card_page in CARDS.items():
        files.append(File.generated(config, card_page, abs_src_path=str(ROOT / card)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to files outside their folder to the pages added above."""
    is_benchmark = page.file.src_uri.startswith("benchmarks/")
    top = "../" if is_benchmark else ""
    for card, card_page in CARDS.items():
        markdown = markdown.replace(f"](../{card})", f"]({top}{card_page})")
    if is_benchmark:
        return markdown.replace("](../docs/", "](../")
    for repository, site in LINKS.items():
        markdown = markdown.replace(repository, site)
    return markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Remove Sphinx roles from docstrings."""
    return ROLE.sub("", html) if page.file.src_uri == "api.md" else html
