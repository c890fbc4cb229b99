"""Sentences and page of an evaluation agree with its numbers, report what is missing, and escape hostile names."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmh_ray.evaluation.metrics.registry import GROUPS, METRICS
from mmh_ray.evaluation.report.narrative import best_simple, sentences, verdicts
from mmh_ray.evaluation.report.page import SiteMeans, blocks, write_evaluation_report

pytestmark = pytest.mark.fast


def _entry(value: float, half: float = 0.05, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 6, **more}


def _difference(value: float, half: float = 0.01) -> dict[str, Any]:
    return _entry(value, half, p=0.03)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """Ours beats raw in the site probe and the truth, loses edges; Nyúl is the better simple method."""
    return {
        "raw": {
            "T1w": {
                "site_probe": _entry(0.9, chance=0.25, chance_high=0.35),
                "truth_nrmse": _entry(0.48),
                "gradient_correlation": _entry(1.0),
                "subject_nearest": _entry(0.5),
            }
        },
        "zscore": {"T1w": {"site_probe": _entry(0.8, chance=0.25, chance_high=0.35), "truth_nrmse": _entry(0.46)}},
        "nyul": {"T1w": {"site_probe": _entry(0.7, chance=0.25, chance_high=0.35), "truth_nrmse": _entry(0.41)}},
        "combat": {"T1w": {"site_probe": _entry(0.3, chance=0.25, chance_high=0.35)}},
        "ours": {
            "T1w": {
                "site_probe": _entry(0.4, chance=0.25, chance_high=0.35),
                "truth_nrmse": _entry(0.36),
                "gradient_correlation": _entry(0.97),
                "hallucination": _entry(0.012),
                "contrast_kept": _entry(0.9),
                "subject_nearest": _entry(0.75),
            }
        },
        "differences": {
            "raw": {
                "T1w": {
                    "site_probe": _difference(-0.5),
                    "gradient_correlation": _difference(-0.03),
                    "psnr": _difference(-1),
                }
            },
            "nyul": {"T1w": {"site_probe": _difference(-0.3), "truth_nrmse": _difference(-0.005)}},
        },
        "about": {
            "archives": {"raw": "/data/bids", "ours": "/data/out"},
            "model": "models:/mmh-global/3",
            "started": "2026-03-01T09:00:00+00:00",
            "subjects": {"T1w": 6},
            "images": {"T1w": 24},
            "sites": {"T1w": 4},
            "data_hash": "abc",
            "problems": [
                {"method": "other", "image_id": "sub-1_T1w", "status": "missing", "reason": "no volume of sub-1_T1w"}
            ],
            "notes": ["T1w: no subject at two sites"],
            "processor_seconds": {"psnr": {"seconds": 1.5, "calls": 3}},
            "seconds": 12.0,
            "code_version": "0.1.0",
        },
    }


def test_sentences_say_what_was_found(evaluation):
    text = " ".join(sentences(evaluation, "T1w"))
    shares = "of 40 % (35 to 45) of our images and of 90 % of the raw images"
    assert f"(site probe) recognises the site {shares}; guessing reaches 25 %, 35 % with luck" in text
    assert "the site can still be recognised" in text
    assert "correlation of 0.970 (0.920 to 1.020), 1.2 % of the output's structure is not explained by the scan" in text
    assert "grey and white matter keep 90 % (85 to 95) of their contrast" in text
    assert "0.360 (0.310 to 0.410) of its standard deviation, 0.480 before" in text
    assert "found across sites for 75 % of images, 50 % before" in text
    compared = "Compared with it, ours is better in site probe; no clear difference in 1 more."
    assert f"Best simple alternative: Nyúl. {compared}" in text
    assert "Ours is worse than the raw scans in PSNR dB." in text  # raw always has the best edges, so they do not count


def test_labelled_tissues_have_a_sentence_if_there_are_any(evaluation):
    assert "labelled" not in " ".join(sentences(evaluation, "T1w"))
    evaluation["raw"]["T1w"] |= {"label_auc_wm": _entry(0.86, 0.01), "label_contrast": _entry(0.28, 0.01)}
    evaluation["ours"]["T1w"] |= {"label_auc_wm": _entry(0.948, 0.01), "label_contrast": _entry(0.34, 0.01)}
    text = " ".join(sentences(evaluation, "T1w"))
    assert "with an AUC of 0.948 (0.938 to 0.958), 0.860 before; their contrast is 0.340, 0.280 before." in text


def test_a_probe_no_better_than_guessing_is_reported_as_such(evaluation):
    evaluation["ours"]["T1w"]["site_probe"] = _entry(0.28, chance=0.25, chance_high=0.35)
    assert "luck: this is no better than guessing" in " ".join(sentences(evaluation, "T1w"))


def test_the_stronger_probe_counts(evaluation):
    evaluation["ours"]["T1w"]["site_probe_cnn"] = _entry(0.95, chance=0.25, chance_high=0.35)
    assert "(site CNN) recognises the site of 95 %" in " ".join(sentences(evaluation, "T1w"))


def test_without_probes_or_ours_that_is_said(evaluation):
    del evaluation["ours"]["T1w"]["site_probe"]
    assert sentences(evaluation, "T1w")[0].startswith("Too few subjects")
    del evaluation["ours"]
    assert sentences(evaluation, "T1w") == [
        "There is no archive named ours, so methods are listed without differences to it."
    ]


def test_where_another_method_beats_ours_is_said_in_its_row_and_in_words(evaluation):
    against = evaluation["differences"]
    assert "No other method is shown to be better than ours" in sentences(evaluation, "T1w")[-1]
    against["zscore"] = {"T1w": {"truth_nrmse": _difference(0.02), "site_probe": _difference(-0.4)}}
    assert sentences(evaluation, "T1w")[-1] == "Ours is worse than z-score in nRMSE to truth."
    won = {line.method: line.beats_ours_in for block in blocks(evaluation, "T1w")[1:2] for line in block.lines}
    assert won == {"raw": "", "z-score": "nRMSE to truth", "Nyúl": "", "harmonized (ours)": ""}


def test_a_simple_method_below_chance_is_no_better_than_one_at_it(evaluation):
    evaluation["zscore"]["T1w"] = {
        "site_probe": _entry(0.0, chance=0.25, chance_high=0.35),
        "truth_nrmse": _entry(0.46),
    }
    evaluation["nyul"]["T1w"]["site_probe"] = _entry(0.25, chance=0.25, chance_high=0.35)
    assert best_simple(evaluation, "T1w") == "nyul"  # equal probes, so the truth decides


def test_the_best_simple_method_makes_images(evaluation):
    assert best_simple(evaluation, "T1w") == "nyul"  # ComBat's probe is better, but it makes no image
    assert best_simple({"raw": evaluation["raw"]}, "T1w") is None


def test_verdicts_follow_the_better_way(evaluation):
    assert verdicts(evaluation, "T1w", "raw") == {
        "site_probe": "better",
        "psnr": "worse",
        "gradient_correlation": "worse",
    }
    assert verdicts(evaluation, "T1w", "nyul") == {"site_probe": "better", "truth_nrmse": "even"}


def test_tables_hold_what_was_measured_and_nothing_else(evaluation):
    found = blocks(evaluation, "T1w")
    assert [block.question for block in found] == [GROUPS[name] for name in ("site", "truth", "kept", "people")]
    site = found[0]
    assert [kind.heading for kind in site.metrics] == ["site probe"]
    assert [line.method for line in site.lines] == ["raw", "z-score", "Nyúl", "ComBat (features)", "harmonized (ours)"]
    assert [line.cells[0].verdict for line in site.lines] == ["better", "", "better", "", ""]
    assert "ours minus this: -0.500 (-0.510 to -0.490), p 0.03" in site.lines[0].cells[0].title
    assert site.chance == 0.25
    assert [line.method for line in found[1].lines] == ["raw", "z-score", "Nyúl", "harmonized (ours)"]


def test_every_measure_belongs_to_a_question():
    assert {kind.group for kind in METRICS.values()} == GROUPS.keys()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def _written(folder: Path, evaluation: dict[str, Any]) -> _Reader:
    picture = folder / "T1w_map.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    by_site = [SiteMeans("T1w", "alder", "raw", noise=0.02, smoothness_mm=None)]
    write_evaluation_report(folder / "report.html", evaluation, by_site, {"T1w": {"map": picture}})
    reader = _Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    return reader


def test_the_page_is_one_file_with_everything_in_it(evaluation, tmp_path):
    page = _written(tmp_path, evaluation)
    text = " ".join(page.text)
    for words in (
        "the site can still be recognised",
        "no subject at two sites",
        "no volume of sub-1_T1w",
        "0.020",
        "models:/mmh-global/3",
    ):
        assert words in text
    addresses = [value for _, own in page.tags for key, value in own.items() if key in ("src", "href") and value]
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert sum(tag == "img" for tag, _ in page.tags) == 1


def test_labelled_tissues_have_a_table_by_site(evaluation, tmp_path):
    assert "Labelled tissues by site" not in " ".join(_written(tmp_path, evaluation).text)
    means = {"label_auc_wm": 0.8765, "label_contrast": 0.25, "n": 4}
    evaluation["about"]["labels"] = {"T1w": {"raw": {"<b>alder": means}, "ours": {"<b>alder": means | {"n": 3}}}}
    page = _written(tmp_path, evaluation)
    text = " ".join(page.text)
    assert "Labelled tissues by site" in text
    assert text.count("0.876") + text.count("0.877") == 2
    assert text.count("<b>alder") == 2
    assert not any(tag == "b" for tag, _ in page.tags)


def test_hostile_names_stay_text(evaluation, tmp_path):
    name = "<script>alert(1)</script>"
    hostile = copy.deepcopy(evaluation)
    hostile["about"]["problems"][0] |= {"image_id": name, "reason": name}
    hostile["about"]["notes"].append(name)
    hostile["about"]["archives"][name] = name
    page = _written(tmp_path, hostile)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert " ".join(page.text).count(name) == 5
