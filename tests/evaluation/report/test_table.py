"""The printed table shows the better direction and the best simple method, and a dash for missing values."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmh_ray.evaluation.report.table import as_table, best_baseline

pytestmark = pytest.mark.fast

RESULTS: dict[str, dict[str, dict[str, float | None]]] = {
    "T1w": {
        "raw": {"psnr": 21.5, "ssim": 0.874, "w1": 0.042, "truth_nrmse": 0.484, "tissue_contrast": None},
        "n4_histogram_matching": {"psnr": 23.7, "ssim": 0.883, "w1": 0.002, "truth_nrmse": 0.403},
        "ours": {"psnr": 28.0, "ssim": 0.938, "w1": 0.009, "truth_nrmse": 0.360},
    },
    "T2w": {"raw": {"psnr": 15.7}, "ours": {"psnr": None}},
}


def _lines(**style) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=140, **style).print(as_table(RESULTS))
    return stream.getvalue().splitlines()


def _row(name: str) -> str:
    return next(line for line in _lines() if name in line)


def test_every_method_has_its_row_and_every_sequence_its_table():
    text = "\n".join(_lines())
    assert "T1w" in text
    assert "T2w" in text
    assert text.count("harmonized (ours)") == 2
    assert "28.0" in _row("harmonized (ours)")


def test_arrows_show_the_better_way():
    header = next(line for line in _lines() if "PSNR" in line)
    assert "PSNR dB ↑" in header
    assert "W1 ↓" in header
    assert "nRMSE to truth ↓" in header


def test_best_simple_baseline_is_marked_and_ours_is_not_one():
    assert best_baseline(RESULTS["T1w"], "psnr") == "n4_histogram_matching"
    assert best_baseline(RESULTS["T1w"], "w1") == "n4_histogram_matching"
    assert best_baseline(RESULTS["T1w"], "tissue_contrast") is None
    assert "23.7 *" in _row("N4 + histogram matching")
    assert "*" not in _row("harmonized (ours)")


def test_ours_is_green_only_where_it_beats_the_best_baseline():
    line = next(line for line in _lines(force_terminal=True, color_system="standard") if "harmonized (ours)" in line)
    assert "32m0.938" in line
    assert "32m0.009" not in line
    assert "0.009" in line


def test_missing_values_are_dashes_and_what_nobody_has_is_left_out():
    table = {"T1w": {"raw": {"psnr": 21.5, "ssim": None}, "ours": {"w1": 0.2}}}
    stream = io.StringIO()
    Console(file=stream, width=140).print(as_table(table))
    lines = stream.getvalue().splitlines()
    assert "SSIM" not in stream.getvalue()
    assert next(line for line in lines if "raw" in line).count(" - ") == 1
