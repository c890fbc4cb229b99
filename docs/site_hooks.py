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
CLUSTER = "cluster.md"
LINKS = {
    "](../benchmarks)": "](benchmarks/README.md)",
    "](../benchmarks/": "](benchmarks/",
    f"](../{CARD})": f"]({CARD_PAGE})",
}
"""In the pages below docs/."""


def on_config(config: Any) -> Any:
    """Put the page about clusters into the navigation where there is one."""
    has_page = (Path(config.docs_dir) / CLUSTER).is_file()
    further = next(section["Go further"] for section in config.nav if "Go further" in section)
    if has_page and CLUSTER not in further:
        further.append(CLUSTER)
    return config


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
