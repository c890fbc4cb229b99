"""The report in a real browser: it opens in silence, sorts, filters, compares, and stays quick at 10,000 images."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.rows import Problem
from mmh_ray.quality import report
from mmh_ray.quality.report import write_report

pytestmark = pytest.mark.browser

LIMIT_S = 2.0
"""Longest wait for 10,000 images to be opened, sorted or filtered."""
MISSING = "\N{EN DASH}"


@pytest.fixture
def visit(quiet_page, tmp_path, record, measures) -> Callable[..., Any]:
    """Writes a report and opens it; at the end, checks that there were no errors and no requests outside the folder."""
    page, complaints = quiet_page
    page.on("request", lambda request: _note_foreign(request.url, tmp_path, complaints))

    def opened(images, **options):
        write_report(tmp_path / "report.html", record, "/data/out", images, measures)
        page.goto((tmp_path / "report.html").as_uri(), **options)
        return page

    return opened


def _note_foreign(url: str, folder: Path, complaints: list[str]) -> None:
    if not url.startswith((folder.as_uri(), "data:")):
        complaints.append(f"asked for {url}")


def _column(page, number: int) -> list[str]:
    return page.locator(f"#rows td:nth-child({number})").all_inner_texts()


def _names(page) -> list[str]:
    return page.locator("#rows .open").all_inner_texts()


def _choose(page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).select_option(label=value)


def test_every_column_sorts_both_ways_with_the_missing_last(visit, many):
    page = visit(many(60))
    worst = _names(page)
    assert [status.strip() for status in _column(page, 6)] == ["failed"] * 3 + ["done"] * 57
    for number in (3, 4, 5, 6, 8, 9, 10, 1):
        head = page.locator(f"#heads th:nth-child({number})")
        seen = {}
        for order in ("ascending", "descending"):
            head.locator("button").press("Enter")
            assert head.get_attribute("aria-sort") == order
            seen[order] = [text.split("\n")[0] for text in _column(page, number)]
        present = [text for text in seen["ascending"] if text != MISSING]
        lacking = [MISSING] * (60 - len(present))
        ordered = sorted(present, key=float if number in (1, 8, 9, 10) else str)
        assert seen == {"ascending": ordered + lacking, "descending": ordered[::-1] + lacking}
    assert _names(page) == worst[::-1]


def test_images_to_look_at_sort_by_their_reasons(visit, image):
    flagged = [image(image_id=f"sub-{count}", flags=("a",) * count) for count in (2, 0, 1)]
    page = visit([*flagged, image(image_id="sub-9", status="failed", problem=Problem("x"), qc={})])
    button = page.get_by_role("button", name="To look at")
    button.click()
    button.click()
    assert _names(page) == ["sub-2", "sub-1", "sub-9", "sub-0"]


def test_filters_narrow_the_table_together_and_clear(visit, many):
    page = visit(many(240))
    shown = page.locator("#shown")
    assert shown.inner_text() == "1 to 100 of 240 images"
    _choose(page, "Status", "failed")
    assert shown.inner_text() == "1 to 12 of 12 images (240 in all)"
    _choose(page, "Status", "all")
    _choose(page, "Site", "beta")
    _choose(page, "Sequence", "T2w")
    assert page.locator("#rows tr").count() == 60
    page.get_by_label("Find").fill("SUB-0000")
    assert set(_names(page)) == {"sub-00001_T2w", "sub-00005_T2w", "sub-00009_T2w"}
    page.get_by_role("button", name="Clear").click()
    assert shown.inner_text() == "1 to 100 of 240 images"
    page.get_by_label("to look at only").check()
    assert shown.inner_text() == "1 to 24 of 24 images (240 in all)"
    page.get_by_label("Find").fill("nobody")
    assert shown.inner_text() == "0 images (240 in all)"


def test_pages_turn(visit, many):
    page = visit(many(240))
    first, forward = _names(page), page.get_by_role("button", name="Next page").first
    forward.click()
    forward.click()
    assert page.locator("#shown").inner_text() == "201 to 240 of 240 images"
    assert forward.is_disabled()
    assert not set(_names(page)) & set(first)


def test_the_slider_moves_the_divide_by_mouse_and_keyboard(visit, image, picture):
    pair = {"before": picture("before.jpg", 40), "after": picture("after.jpg", 200)}
    page = visit([image(**pair), image(image_id="sub-02_T1w"), image(image_id="sub-03_T1w", before=pair["before"])])
    page.locator("#rows tr").first.click()
    over, slider = page.locator("#over"), page.locator("#slider")

    def cut() -> str:
        return over.evaluate("image => getComputedStyle(image).clipPath")

    assert cut() == "inset(0px 0px 0px 50%)"
    slider.press("ArrowRight")
    assert cut() == "inset(0px 0px 0px 50.5%)"
    slider.press("Home")
    assert cut() == "inset(0px 0px 0px 0%)"
    box = page.locator("#stage").bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 20)
    assert float(re.search(r"([\d.]+)%", cut()).group(1)) == pytest.approx(80, abs=2)
    under = page.locator("#under")
    assert under.bounding_box() == over.bounding_box()
    assert page.get_by_text("before", exact=True).last.is_visible()
    page.get_by_role("button", name="Next image").click()
    assert page.get_by_text("There are no pictures of this image.").is_visible()
    page.get_by_role("button", name="Next image").click()
    assert page.get_by_text("There is no picture after harmonization.").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#compare").is_visible()


def test_pictures_beyond_the_budget_are_loaded_when_shown(visit, image, picture, monkeypatch):
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 0)
    pair = {"before": picture("a 1%.jpg", 40), "after": picture("b #2?.jpg", 200)}
    page = visit([image(**pair)])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator(".thumb").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.thumb').naturalWidth > 0")
    page.locator(".open").click()
    page.wait_for_function("document.getElementById('under').naturalWidth > 0")
    assert any(url.endswith("/qc/a%201%25.jpg") for url in asked)
    page.get_by_role("button", name="Close").click()
    page.get_by_label("pictures").uncheck()
    assert page.locator(".thumb").count() == 0


def test_ten_thousand_images_open_sort_and_filter_quickly(visit, many):
    start = time.perf_counter()
    page = visit(many(10_000), wait_until="commit")
    written = time.perf_counter()
    page.locator("#rows tr").last.wait_for(state="attached")
    waits = {"write": written - start, "open": time.perf_counter() - written}
    for name, act in {
        "sort figures": lambda: page.get_by_role("button", name="anatomy kept").click(),
        "sort names": lambda: page.get_by_role("button", name="Image", exact=True).click(),
        "filter": lambda: page.get_by_label("Find").fill("T2w"),
    }.items():
        start = time.perf_counter()
        act()
        page.locator("#rows tr").last.wait_for(state="attached")
        waits[name] = time.perf_counter() - start
    assert page.locator("#shown").inner_text() == "1 to 100 of 5,000 images (10,000 in all)"
    assert page.locator("#rows tr").count() == 100
    waits.pop("write")
    assert max(waits.values()) < LIMIT_S, waits


def test_hostile_names_do_nothing(visit, image):
    name = "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>\"'"
    words = dict.fromkeys(("image_id", "subject", "session", "site", "sequence"), name)
    words["problem"] = Problem(name, name, name)
    page = visit([image(**words, status="failed", flags=(name,)), image(**words, flags=(name,))])
    assert _names(page) == [name, name]
    _choose(page, "Site", name)
    page.locator("#rows tr").first.click()
    assert page.locator("#which").inner_text() == name
    assert page.locator("script").count() == 3
    assert page.locator("img[src=x], a[href^=javascript]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, many, scheme):
    page = visit(many(40))
    page.emulate_media(color_scheme=scheme)
    ground = _luminance(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert (ground > 0.5) == (scheme == "light")
    for selector in ("h1", ".facts", ".note", "td .status.failed", "td .status.done", ".open", "thead th"):
        text = _luminance(page.locator(selector).first.evaluate("node => getComputedStyle(node).color"))
        contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        assert contrast >= 4.5, (selector, contrast)


def _luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_narrow_screen_scrolls_the_tables_alone(visit, many):
    page = visit(many(30))
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    lines_of_heads = page.evaluate("document.querySelector('#heads').offsetHeight / 20")
    assert lines_of_heads < 3  # a tall head would be empty here: most of it is out of view to the right


def test_without_scripts_the_summary_is_there(browser, tmp_path, record, measures, many):
    write_report(tmp_path / "report.html", record, "/data/out", many(40), measures)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.get_by_role("heading", level=1).inner_text() == "38 of 40 images harmonized; 2 failed; 4 to look at"
    assert page.get_by_text("2 images: unreadable").is_visible()
    assert page.locator("svg.plot").count() == 4
    assert page.get_by_text("need JavaScript").is_visible()
    assert not page.locator("#browse").is_visible()
    context.close()
