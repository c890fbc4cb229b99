"""The table people read: methods side by side, one table per sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""``{sequence: {method: {measure: value}}}``; None where a measure cannot be had."""

MEASURES: dict[str, tuple[str, bool]] = {
    "psnr": ("PSNR dB", True),
    "ssim": ("SSIM", True),
    "w1": ("W1", False),
    "gradient_correlation": ("gradient corr.", True),
    "truth_nrmse": ("nRMSE to truth", False),
    "tissue_contrast": ("GM-WM contrast", True),
}
"""Columns: heading, and whether higher is better."""

OURS = "harmonized"

_NAMES = {
    "raw": "raw",
    "zscore": "z-score",
    "whitestripe": "WhiteStripe",
    "nyul": "Nyúl",
    "n4_histogram_matching": "N4 + histogram matching",
    "n4_histogram_matching_nlm": "N4 + HM + NLM",
    OURS: "harmonized (ours)",
}


def best_baseline(methods: Mapping[str, Mapping[str, float | None]], measure: str) -> str | None:
    """The simple method with the best value of a measure; None when none has one."""
    values = {name: row.get(measure) for name, row in methods.items() if name != OURS}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    return (max if MEASURES[measure][1] else min)(known, key=lambda name: known[name])


def as_table(results: Results) -> Group:
    """One rich table per sequence; arrows show the better way, an asterisk the best simple baseline.

    Print it with ``rich.console.Console().print(as_table(results))``.
    """
    return Group(*(_one(sequence, methods) for sequence, methods in results.items()))


def _one(sequence: str, methods: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(title=sequence, caption="* best simple baseline; green: ours is better")
    table.add_column("method", no_wrap=True)
    for heading, higher in MEASURES.values():
        table.add_column(f"{heading} {'↑' if higher else '↓'}", justify="right")
    best = {measure: best_baseline(methods, measure) for measure in MEASURES}
    for name in _ordered(methods):
        cells = [_cell(methods, name, measure, best[measure]) for measure in MEASURES]
        table.add_row(_NAMES.get(name, name), *cells, style="bold" if name == OURS else None)
    return table


def _ordered(methods: Iterable[str]) -> list[str]:
    known = [name for name in _NAMES if name in methods]
    return known + [name for name in methods if name not in _NAMES]


def _cell(methods: Mapping[str, Mapping[str, float | None]], name: str, measure: str, best: str | None) -> Text:
    value = methods[name].get(measure)
    if value is None:
        return Text("-", style="dim")
    text = Text(
        f"{value:.1f}" if measure == "psnr" else f"{value:.2f}" if measure == "tissue_contrast" else f"{value:.3f}"
    )
    if name == best:
        return text.append(" *")
    rival = methods[best].get(measure) if best else None
    if name == OURS and rival is not None and (value > rival) == MEASURES[measure][1] and value != rival:
        text.stylize("green")
    return text
