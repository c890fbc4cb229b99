"""Hooks of the docs site: pages that lie elsewhere in the repository are pages of the site, too.

Links are written so that they work where the file is read in the repository; here they are led to the site's own pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
CARD = "mmh_ray/models/weights/mmh-base/MODEL_CARD.md"
CARD_PAGE = "model-card.md"
LINKS = {
    "](../benchmarks)": "](benchmarks/README.md)",
    "](../benchmarks/": "](benchmarks/",
    f"](../{CARD})": f"]({CARD_PAGE})",
}
"""In the pages below docs/."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of benchmarks/ and the card of the model that the package brings."""
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, CARD_PAGE, abs_src_path=str(ROOT / CARD)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links that leave docs/ to the pages added above."""
    if page.file.src_uri.startswith("benchmarks/"):
        return markdown.replace("](../docs/", "](../")
    for repository, site in LINKS.items():
        markdown = markdown.replace(repository, site)
    return markdown
