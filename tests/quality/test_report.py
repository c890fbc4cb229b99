"""The page says what happened, is small and self-contained, and hostile names in it have no effect."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mmh_ray.bids.rows import Problem
from mmh_ray.errors import DataError
from mmh_ray.html_page import policy_hash
from mmh_ray.quality import report
from mmh_ray.quality.report import REASONS, write_report

pytestmark = pytest.mark.fast

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}&amp;<!--"


class Page(HTMLParser):
    """Elements, texts and scripts of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.texts = [], [], []
        self.within = None
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())
        self.table, self.pictures = (json.loads(script) for script in self.scripts[:2])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.within = tag
        self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag):
        self.within = None

    def handle_data(self, data):
        if self.within == "script":
            self.scripts[-1] += data
        elif self.within not in ("style", "title"):
            self.texts.append(data)


@pytest.fixture
def page(tmp_path, record, measures):
    """Writes a report of these images and reads it back."""

    def made(images, output="/data/out", **changes):
        write_report(tmp_path / "report.html", replace(record, **changes), output, images, measures)
        return Page(tmp_path / "report.html")

    return made


def test_the_page_describes_the_run(page, many):
    written = page(many(40))
    for text in (
        "38 of 40 images harmonized; 2 failed; 4 to look at",
        "2 images: unreadable",
        "sub-00003_T2w",
        "took 1:30:05",
        "harmonize.steps",
        "models:/mmh-global@champion",
        "numpy",
        "Marked below 0.85.",
        "tested with up to 10,000 images",
    ):
        assert text in written.text
    assert "The run did not finish" not in written.text
    assert sum(tag == "path" and attributes.get("class") == "line c0" for tag, attributes in written.tags) >= 2


def test_a_run_that_stopped_says_so_first(page, many):
    written = page(many(4), finished=None, failure="the head node went away")
    assert written.text.index("The run did not finish the head node went away") < written.text.index("Counts")
    interrupted = page(many(4), finished=None).text
    assert "It was interrupted." in interrupted
    assert "not finished" in interrupted


def test_rows_come_worst_first_with_nan_as_nothing(page, image):
    nan = image(image_id="nan", qc={"preservation": math.nan, "noise": math.inf}, seconds=math.nan, flags=("odd",))
    written = page([image(), nan, image(image_id="bad", status="failed", problem=Problem("x", "y", "Z."), qc={})])
    assert [row[0] for row in written.table["rows"]] == ["bad", "nan", "sub-01_T1w"]
    assert written.table["rows"][0][6:9] == ["x", "y", "Z."]
    assert written.table["rows"][1][9:13] == [None, ["odd"], [1], [None, None]]


@pytest.mark.parametrize("status", ["done", "failed"])
def test_hostile_names_stay_text(page, image, status):
    names = dict.fromkeys(("image_id", "subject", "session", "site", "sequence"), HOSTILE)
    names["problem"] = Problem(HOSTILE, HOSTILE, HOSTILE)
    honest, hostile = (
        page([image(status=status)]),
        page(
            [image(**names, status=status, flags=(HOSTILE,))],
            output=HOSTILE,
            failure=HOSTILE,
            settings={HOSTILE: {HOSTILE: HOSTILE}},
            versions={HOSTILE: HOSTILE},
        ),
    )
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in honest.tags} | {"div", "h2"}
    assert len(hostile.scripts) == len(honest.scripts) == 3
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert hostile.table["rows"][0][:5] == [HOSTILE] * 5
    assert HOSTILE in hostile.text


def test_no_address_of_the_network_and_no_script_but_its_own(page, many, tmp_path):
    written = page(many(3))
    policy = next(attributes["content"] for tag, attributes in written.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert policy_hash(written.scripts[2]) in policy
    assert "http" not in (tmp_path / "report.html").read_text(encoding="utf-8").replace("http-equiv", "")


def test_pictures_are_inside_up_to_the_budget_and_the_page_says_so(page, image, picture, monkeypatch, tmp_path):
    def pictured(i):
        pair = {when: picture(f"{i} {when} #1%.jpg", 20 * i) for when in ("before", "after")}
        return image(image_id=f"sub-{i}", qc={"preservation": 0.9 + i / 100}, **pair)

    images = [pictured(i) for i in range(5)]
    assert "All 5 images' pictures are inside" in page(images).text
    size = (tmp_path / images[0].before).stat().st_size
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 6 * size)
    written = page(images)
    assert [len(pair) for pair in written.pictures] == [2, 2]
    assert all(uri.startswith("data:image/jpeg;base64,") for pair in written.pictures for uri in pair)
    assert "Those of the first 2 images are inside this page" in written.text
    assert "those of the other 3 are loaded" in written.text
    assert written.table["rows"][4][-2:] == ["qc/4%20before%20%231%25.jpg", "qc/4%20after%20%231%25.jpg"]


def test_a_picture_that_is_not_there_is_left_out(page, image, picture):
    written = page([image(before="qc/gone.jpg", after=picture("after.jpg", 9)), image(image_id="sub-02")])
    assert written.table["rows"][0][-2:] == [None, "qc/after.jpg"]
    assert written.pictures[0][0] is None
    assert written.pictures[1] == [None, None]


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../other/a.jpg", "qc/../../a.jpg", "qc/a.svg", "qc/a", ""])
def test_a_picture_outside_the_folder_is_refused(page, image, name):
    with pytest.raises(DataError, match="inside the report's folder"):
        page([image(after=name)])


def test_names_of_any_bytes_can_be_written(page, image, picture):
    name = os.fsdecode(b"\xe9t\xe9.jpg")
    written = page([image(image_id=name, problem=Problem(name), status="failed", before=picture(name, 3))])
    assert written.table["rows"][0][0] == name
    assert written.table["rows"][0][-2] == "qc/%E9t%E9.jpg"


@pytest.mark.parametrize("count", [0, 3])
def test_a_cohort_without_any_result_has_a_page(page, image, count):
    lost = {"site": None, "qc": {}, "histogram_before": None, "histogram_after": None, "seconds": None}
    written = page([image(**lost, status="failed", problem=None) for _ in range(count)])
    assert len(written.table["rows"]) == count
    assert ("3 images: no reason given" in written.text) == (count == 3)
    assert "There are no pictures." in written.text
    assert "nan" not in written.text.lower().replace("nine", "")


@pytest.mark.slow
def test_ten_thousand_images_fit_into_a_few_megabytes(page, many, tmp_path):
    written = page(many(10_000))
    assert (tmp_path / "report.html").stat().st_size < 4_000_000
    assert len(written.table["rows"]) == 10_000
    assert "9,500 of 10,000 images harmonized" in written.text


def test_reasons_beyond_the_limit_are_counted(page, image):
    images = [
        image(image_id=f"sub-{i}", status="failed", problem=Problem(f"reason {i:03d}")) for i in range(REASONS + 7)
    ]
    written = page(images)
    assert "7 images have 7 other reasons" in written.text
    assert f"reason {REASONS - 1:03d}" in written.text
