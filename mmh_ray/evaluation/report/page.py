"""Writes the evaluation as one HTML page: sentences, sortable tables, pictures, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmh_ray.evaluation.metrics.label_metrics import LABEL_METRICS
from mmh_ray.evaluation.metrics.registry import GROUPS, METRICS, OURS, Metric, ordered, shown_name, text_of
from mmh_ray.evaluation.report.labels_table import site_lines
from mmh_ray.evaluation.report.narrative import headings_beating_ours, sentences, verdicts
from mmh_ray.evaluation.statistics.summary import NO_METHODS, by_sequence
from mmh_ray.html_page import data_uri, write_page

PROBLEMS = 200
"""Maximum number of problems listed; `evaluation.json` holds all."""

CAPTIONS = {
    "before_after": "Axial slices, each scaled by its own percentiles; the same display window for all.",
    "differences": "What harmonization changed, and the remaining differences between sites.",
    "dissimilarity": "Structure that differs from the scan's: black 0 (same), grey ½ (unrelated), white 1 (inverted).",
    "histograms": "Brain intensities by site, each image scaled by its own percentiles.",
    "umap": "The same images, placed by UMAP.",
    "map_people": "Persons with several scans, one colour each: their images should be close together.",
    "map": "Each dot is an image. A good method mixes the sites and keeps the images of a person together.",
}


class Cell(NamedTuple):
    """A cell of a table.

    Attributes
    ----------
    text, interval:
        The value, and the interval shown below it.
    value:
        The number that the table is sorted by.
    verdict:
        How ours compares: better, worse, even or empty.
    title:
        Text shown when the mouse points at the cell.
    """

    text: str
    interval: str
    value: float | None
    verdict: str
    title: str


class Line(NamedTuple):
    """One method: its name, whether it is ours, its cells, and the headings in which it is better than ours."""

    method: str
    is_ours: bool
    cells: list[Cell]
    beats_ours_in: str


class Block(NamedTuple):
    """One table: the metrics of a group for every method of a sequence."""

    question: str
    metrics: list[Metric]
    lines: list[Line]
    chance: float | None


class SiteMeans(NamedTuple):
    """Mean noise and smoothness over a site's images for one method; None if unknown."""

    sequence: str
    site: str
    method: str
    noise: float | None
    smoothness_mm: float | None


def write_evaluation_report(
    path: str | Path,
    evaluation: Mapping[str, Any],
    by_site: Sequence[SiteMeans],
    pictures: Mapping[str, Mapping[str, Path]],
) -> None:
    """Write the page; on failure no partial file remains.

    Parameters
    ----------
    evaluation:
        The content of `evaluation.json`.
    by_site:
        Means for every sequence, site and method.
    pictures:
        PNG files by sequence and kind; they are embedded in the page.
    """
    sequences = list(by_sequence(evaluation))
    about = evaluation["about"]
    captioned = {}
    for sequence, files in pictures.items():
        captioned[sequence] = [(CAPTIONS[kind], data_uri(file)) for kind, file in files.items()]
    context = {
        "about": about,
        "sequences": sequences,
        "sentences": {sequence: sentences(evaluation, sequence) for sequence in sequences},
        "blocks": {sequence: blocks(evaluation, sequence) for sequence in sequences},
        "pictures": captioned,
        "sites": _site_rows(by_site),
        "labels": _label_rows(about.get("labels", {})),
        "label_metrics": [METRICS[metric] for metric in LABEL_METRICS],
        "problems": about["problems"][:PROBLEMS],
        "other_problems": len(about["problems"][PROBLEMS:]),
        "metrics": METRICS,
        "times": _times(about["processor_seconds"]),
        "has_ours": OURS in evaluation,
    }
    styles = ["report.css", "evaluation.css"]
    write_page(path, "evaluation.html.j2", styles, ["evaluation.js"], context)


def blocks(evaluation: Mapping[str, Any], sequence: str) -> list[Block]:
    """The tables of a sequence; metrics that no method has are left out."""
    methods = ordered(evaluation.keys() - NO_METHODS)
    methods = [method for method in methods if sequence in evaluation[method]]
    measured = {name for method in methods for name in evaluation[method][sequence]}
    tables = []
    for group, question in GROUPS.items():
        names = [name for name, metric in METRICS.items() if metric.group == group and name in measured]
        if not names:
            continue
        lines = _lines(evaluation, sequence, methods, names)
        chance = _chance(evaluation, sequence, methods, names) if group == "site" else None
        tables.append(Block(question, [METRICS[name] for name in names], lines, chance))
    return tables


def _lines(evaluation: Mapping[str, Any], sequence: str, methods: Sequence[str], metrics: Sequence[str]) -> list[Line]:
    """A line per method that has any of the metrics."""
    lines = []
    for method in methods:
        cells = [_cell(evaluation, method, sequence, metric) for metric in metrics]
        if any(cell.value is not None for cell in cells):
            beats_ours_in = headings_beating_ours(evaluation, sequence, method, metrics)
            lines.append(Line(shown_name(method), method == OURS, cells, beats_ours_in))
    return lines


def _chance(
    evaluation: Mapping[str, Any], sequence: str, methods: Sequence[str], metrics: Sequence[str]
) -> float | None:
    """The accuracy of guessing the site; None without a probe."""
    chances = []
    for method in methods:
        for metric in metrics:
            chance = evaluation[method][sequence].get(metric, {}).get("chance")
            if chance is not None:
                chances.append(chance)
    return max(chances, default=None)


def _cell(evaluation: Mapping[str, Any], method: str, sequence: str, metric: str) -> Cell:
    entry = evaluation[method][sequence].get(metric)
    if entry is None:
        return Cell(text="\N{EN DASH}", interval="", value=None, verdict="", title="not measured")
    interval = ""
    if entry["low"] is not None and entry["high"] is not None:
        interval = f"{text_of(metric, entry['low'])} to {text_of(metric, entry['high'])}"
    title = f"{entry['n']} subjects"
    difference = evaluation["differences"].get(method, {}).get(sequence, {}).get(metric)
    if difference:
        title += _difference_to_ours(metric, difference)
    return Cell(
        text=text_of(metric, entry["value"]),
        interval=interval,
        value=entry["value"],
        verdict=verdicts(evaluation, sequence, method).get(metric, ""),
        title=title,
    )


def _difference_to_ours(metric: str, difference: Mapping[str, Any]) -> str:
    text = f"; ours minus this: {text_of(metric, difference['value'])}"
    if difference["low"] is not None:
        text += f" ({text_of(metric, difference['low'])} to {text_of(metric, difference['high'])})"
    if difference["p"] is not None:
        text += f", p {difference['p']:.3g}"
    return text


def _site_rows(by_site: Sequence[SiteMeans]) -> list[dict[str, Any]]:
    """Sequence, method, site and two cells, sorted in this order."""
    methods = ordered({means.method for means in by_site})
    in_order = sorted(by_site, key=lambda means: (means.sequence, methods.index(means.method), str(means.site)))
    rows = []
    for means in in_order:
        row = means._asdict()
        row["method"] = shown_name(means.method)
        for metric in ("noise", "smoothness_mm"):
            row[metric] = _sortable(metric, row[metric])
        rows.append(row)
    return rows


def _label_rows(labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sequence, site, method, number of images and one cell per metric of labelled tissues."""
    rows = []
    for sequence, methods in labels.items():
        for site, method, means in site_lines(methods):
            rows.append(
                {
                    "sequence": sequence,
                    "site": site,
                    "method": shown_name(method),
                    "images": means["n"],
                    "cells": [_sortable(metric, means.get(metric)) for metric in LABEL_METRICS],
                }
            )
    return rows


def _sortable(metric: str, value: float | None) -> tuple[str, float] | None:
    """Text of a cell, and the value it is sorted by; None without a value."""
    if value is None:
        return None
    return text_of(metric, value), value


def _times(processor_seconds: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float, int, float]]:
    """Metric, processor seconds per call, calls, total seconds; the most expensive first."""
    rows = []
    for metric, spent in processor_seconds.items():
        seconds = spent["seconds"]
        calls = int(spent["calls"])
        rows.append((metric, seconds / max(calls, 1), calls, seconds))
    return sorted(rows, key=lambda row: -row[3])
