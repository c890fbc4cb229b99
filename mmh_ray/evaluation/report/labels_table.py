"""Prints metrics of labelled tissues as a table, with all methods for each site."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table

from mmh_ray.evaluation.metrics.label_metrics import LABEL_METRICS
from mmh_ray.evaluation.metrics.registry import METRICS, OURS, ordered, shown_name, text_of

Means = Mapping[str, float]
"""Mean of each metric over a site's images, and the number of images as ``n``."""


def labels_table(labels: Mapping[str, Mapping[str, Mapping[str, Means]]]) -> Group:
    """One rich table per sequence: a row per site and method, a column per metric.

    Parameters
    ----------
    labels:
        ``{sequence: {method: {site: means}}}``, the ``about.labels`` of an evaluation.
    """
    tables = [_sequence_table(sequence, methods) for sequence, methods in labels.items()]
    return Group(*tables)


def site_lines(methods: Mapping[str, Mapping[str, Means]]) -> list[tuple[str, str, Means]]:
    """Site, method and means, sorted by site and then by method."""
    sites = {site for means_by_site in methods.values() for site in means_by_site}
    lines = []
    for site in sorted(sites):
        for method in ordered(methods):
            if site in methods[method]:
                lines.append((site, method, methods[method][site]))
    return lines


def _sequence_table(sequence: str, methods: Mapping[str, Mapping[str, Means]]) -> Table:
    table = Table(title=f"{sequence}: labelled tissues by site")
    for heading in ("site", "method"):
        table.add_column(heading, no_wrap=True)
    table.add_column("images", justify="right")
    for metric in LABEL_METRICS:
        table.add_column(f"{METRICS[metric].heading} {METRICS[metric].arrow}".strip(), justify="right")
    previous_site = None
    for site, method, means in site_lines(methods):
        if previous_site not in (None, site):
            table.add_section()
        previous_site = site
        cells = [text_of(name, means[name]) if name in means else "-" for name in LABEL_METRICS]
        table.add_row(site, shown_name(method), str(means["n"]), *cells, style="bold" if method == OURS else None)
    return table
