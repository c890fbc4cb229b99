"""The table people read: methods side by side, one table per sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmh_ray.evaluation.metrics.registry import MEASURES, OURS, SIMPLE, ordered, shown_name, text_of

Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""``{sequence: {method: {measure: value}}}``; None, or no key, where a measure cannot be had."""

COLUMNS = ("site_probe", "psnr", "ssim", "w1", "truth_nrmse", "gradient_correlation", "tissue_contrast")
"""Measures that fit into a terminal; the report has all."""


def best_baseline(methods: Mapping[str, Mapping[str, float | None]], measure: str) -> str | None:
    """The simple method with the best value of a measure; None when none has one."""
    values = {name: row.get(measure) for name, row in methods.items() if name in SIMPLE}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    kind = MEASURES[measure]
    return max(known, key=lambda name: kind.sign * kind.judged(known[name]))


def as_table(results: Results, columns: Sequence[str] = COLUMNS) -> Group:
    """One rich table per sequence with a column per measure; arrows show the better way, an asterisk the best simple baseline.

    Print it with ``rich.console.Console().print(as_table(results))``.
    """
    return Group(*(_one(sequence, methods, columns) for sequence, methods in results.items()))


def _one(sequence: str, methods: Mapping[str, Mapping[str, float | None]], columns: Sequence[str]) -> Table:
    table = Table(title=sequence, caption="* best simple method; green: ours is better")
    table.add_column("method", no_wrap=True)
    for measure in columns:
        table.add_column(f"{MEASURES[measure].heading} {MEASURES[measure].arrow}", justify="right")
    best = {measure: best_baseline(methods, measure) for measure in columns}
    for name in ordered(methods):
        cells = [_cell(methods, name, measure, best[measure]) for measure in columns]
        table.add_row(shown_name(name), *cells, style="bold" if name == OURS else None)
    return table


def _cell(methods: Mapping[str, Mapping[str, float | None]], name: str, measure: str, best: str | None) -> Text:
    value = methods[name].get(measure)
    if value is None:
        return Text("-", style="dim")
    text = Text(text_of(measure, value))
    if name == best:
        return text.append(" *")
    rival, kind = methods[best].get(measure) if best else None, MEASURES[measure]
    if name == OURS and rival is not None and kind.sign * (kind.judged(value) - kind.judged(rival)) > 0:
        text.stylize("green")
    return text
