"""The evaluation's page in a real browser: it opens without complaints, sorts by number and shows its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmh_ray.evaluation.metrics.registry import METRICS
from mmh_ray.evaluation.report.narrative import PROBES
from mmh_ray.evaluation.report.page import SiteMeans, write_evaluation_report

pytestmark = pytest.mark.browser

METHODS = ("raw", "zscore", "nyul", "other", "ours")


def _evaluation(name: str) -> dict[str, Any]:
    """Five methods in an order that no measure has; two lack the PSNR."""
    values = dict(zip(METHODS, (21.5, None, 9.75, 100.0, 28.0), strict=True))
    evaluation: dict[str, Any] = {"differences": {}}
    for method, value in values.items():
        row = {measure: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 6} for measure in METRICS if measure != "psnr"}
        for probe in PROBES:
            row[probe] |= {"chance": 0.25, "chance_high": 0.4}
        evaluation[method] = {
            "T1w": row | ({} if value is None else {"psnr": {"value": value, "low": None, "high": None, "n": 6}})
        }
    one = {"method": name, "image_id": name, "status": "missing", "reason": name}
    evaluation["about"] = {
        "archives": {"raw": name, "ours": "/data/out"},
        "model": None,
        "started": "2026-03-01T09:00:00+00:00",
        "subjects": {"T1w": 6},
        "images": {"T1w": 24},
        "sites": {"T1w": 4},
        "data_hash": "abc",
        "problems": [one],
        "notes": [name],
        "processor_seconds": {"psnr": {"seconds": 1.5, "calls": 3}},
        "seconds": 12.0,
        "code_version": "0.1.0",
    }
    return evaluation


@pytest.fixture
def page(quiet_page, tmp_path: Path) -> Any:
    """The page with hostile names; the browser must not complain or request anything else."""
    page, complaints = quiet_page
    own = (tmp_path / "report.html").as_uri()
    page.on("request", lambda request: request.url.startswith((own, "data:")) or complaints.append(request.url))
    picture = tmp_path / "map.png"
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(picture)
    by_site = [SiteMeans("T1w", site, "raw", noise=0.02, smoothness_mm=9.5) for site in "ab"]
    hostile = "<img src=x onerror=alert(1)>"
    write_evaluation_report(tmp_path / "report.html", _evaluation(hostile), by_site, {"T1w": {"map": picture}})
    page.goto(own)
    return page


def test_a_column_sorts_by_figure_both_ways_with_the_missing_last(page) -> None:
    table = page.get_by_role("region", name="T1w: Do sites agree?").locator("table")
    names = table.locator("tbody th")
    assert names.all_inner_texts() == ["raw", "z-score", "Nyúl", "other", "harmonized (ours)"]
    button = table.get_by_role("button", name="PSNR dB")
    button.press("Enter")
    assert names.all_inner_texts() == ["Nyúl", "raw", "harmonized (ours)", "other", "z-score"]
    button.press("Enter")
    assert names.all_inner_texts() == ["other", "harmonized (ours)", "raw", "Nyúl", "z-score"]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("PSNR dB")


def test_every_measure_is_in_a_table_and_the_picture_is_inside(page) -> None:
    for kind in METRICS.values():
        assert page.locator("section#T1w thead button", has_text=kind.heading).count() >= 1
    assert page.locator("section#T1w img").evaluate("image => image.naturalWidth") == 40


def test_nothing_is_wider_than_the_page(page) -> None:
    for width in (1280, 500):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_stay_text(page) -> None:
    assert page.get_by_text("<img src=x onerror=alert(1)>").count() >= 3
    assert page.locator("img[src=x]").count() == 0
