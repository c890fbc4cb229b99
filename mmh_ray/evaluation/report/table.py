"""Prints the main metrics of all methods, with one table per sequence."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmh_ray.evaluation.metrics.registry import METRICS, OURS, SIMPLE, ordered, shown_name, text_of

MethodValues = Mapping[str, Mapping[str, float | None]]
"""``{method: {metric: value}}``; None, or no key, if a metric is not available."""

Results = Mapping[str, MethodValues]
"""Values by sequence."""

MAIN_METRICS = (
    "site_probe",
    "psnr",
    "ssim",
    "w1",
    "style_distance",
    "truth_nrmse",
    "gradient_correlation",
    "tissue_contrast",
)
"""Metrics that fit into a terminal; a table shows those that are available. The report has all metrics."""


def best_baseline(methods: MethodValues, metric: str) -> str | None:
    """The simple method with the best value of a metric; None if no simple method has a value."""
    worth: dict[str, float] = {}
    for method in methods:
        value = methods[method].get(metric)
        if method in SIMPLE and value is not None:
            worth[method] = METRICS[metric].worth(value)
    if not worth:
        return None
    return max(worth, key=lambda method: worth[method])


def as_table(results: Results) -> Group:
    """One rich table per sequence, with a column for each of :data:`MAIN_METRICS` that any method has.

    Arrows show the better direction; an asterisk marks the best simple method. Print with
    ``rich.console.Console().print(as_table(results))``.
    """
    tables = [_sequence_table(sequence, methods) for sequence, methods in results.items()]
    return Group(*tables)


def _sequence_table(sequence: str, methods: MethodValues) -> Table:
    columns = []
    for metric in MAIN_METRICS:
        if any(values.get(metric) is not None for values in methods.values()):
            columns.append(metric)
    table = Table(title=sequence, caption="* best simple method; green: ours is better")
    table.add_column("method", no_wrap=True)
    for metric in columns:
        table.add_column(f"{METRICS[metric].heading} {METRICS[metric].arrow}", justify="right")
    best = {metric: best_baseline(methods, metric) for metric in columns}
    for method in ordered(methods):
        cells = [_cell(methods, method, metric, best[metric]) for metric in columns]
        table.add_row(shown_name(method), *cells, style="bold" if method == OURS else None)
    return table


def _cell(methods: MethodValues, method: str, metric: str, best: str | None) -> Text:
    value = methods[method].get(metric)
    if value is None:
        return Text("-", style="dim")
    text = Text(text_of(metric, value))
    if method == best:
        return text.append(" *")
    rival = methods[best].get(metric) if best else None
    worth = METRICS[metric].worth
    if method == OURS and rival is not None and worth(value) > worth(rival):
        text.stylize("green")
    return text
