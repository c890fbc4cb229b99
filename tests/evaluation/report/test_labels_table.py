"""The table of labelled tissues lists all methods for each site, and a dash for missing values."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmh_ray.evaluation.report.labels_table import labels_table, site_lines

pytestmark = pytest.mark.fast

LABELS = {
    "T1w": {
        "ours": {"birch": {"label_auc_wm": 0.96, "n": 2}, "alder": {"label_auc_wm": 0.94, "label_cnr": 2.0, "n": 3}},
        "n4": {"birch": {"label_auc_wm": 0.95, "n": 2}},
    },
    "T2w": {"raw": {"alder": {"label_auc_wm": 0.7, "n": 1}}},
}


def test_methods_stand_side_by_side_at_every_site() -> None:
    assert [line[:2] for line in site_lines(LABELS["T1w"])] == [("alder", "ours"), ("birch", "n4"), ("birch", "ours")]


def test_every_sequence_has_its_table_and_what_is_missing_is_a_dash() -> None:
    stream = io.StringIO()
    Console(file=stream, width=140).print(labels_table(LABELS))
    lines = stream.getvalue().splitlines()
    assert sum("labelled tissues by site" in line for line in lines) == 2
    ours = [line for line in lines if "harmonized (ours)" in line]
    assert [cell.strip() for cell in ours[0].strip("│").split("│")] == [
        *("alder", "harmonized (ours)", "3", "0.940", "-", "-", "2.00", "-", "-"),
    ]
    assert "AUC WM/GM ↑" in "".join(lines)


def test_nothing_labelled_prints_nothing() -> None:
    stream = io.StringIO()
    Console(file=stream).print(labels_table({}))
    assert stream.getvalue().strip() == ""
