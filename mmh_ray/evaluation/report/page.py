"""The evaluation as one HTML page: sentences first, then tables that sort, pictures, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmh_ray.evaluation.metrics.label_metrics import LABEL_MEASURES
from mmh_ray.evaluation.metrics.registry import GROUPS, MEASURES, OURS, Kind, ordered, shown_name, text_of
from mmh_ray.evaluation.report.labels_table import site_lines
from mmh_ray.evaluation.report.narrative import sentences, verdicts, where_it_beats_ours
from mmh_ray.evaluation.statistics.summary import by_sequence
from mmh_ray.html_page import data_uri, write_page

PROBLEMS = 200
"""Most problems listed; evaluation.json holds them all."""

CAPTIONS = {
    "before_after": "Axial slices, each scaled by its own percentiles; one window for all.",
    "differences": "What harmonizing changed, and what is left between sites.",
    "dissimilarity": "Where the structure differs from the scan's: black 0 (the same), grey one half (unrelated), white 1 (inverted).",
    "histograms": "Brain intensities by site, each image scaled by its own percentiles.",
    "umap": "The same images, placed by UMAP.",
    "map_people": "Persons who were scanned several times, each in a colour: their images should lie together.",
    "map": "Every dot is an image. Sites that lie apart can be told apart; a good method mixes them and keeps persons together.",
}

Row = Mapping[str, Any]


class Cell(NamedTuple):
    """A value with its interval as text, what it is sorted by, and how ours compares: better, worse, even or nothing."""

    text: str
    interval: str
    value: float | None
    verdict: str
    title: str


class Line(NamedTuple):
    """One method: its name, whether it is ours, its cells, and the headings in which it is shown to beat ours."""

    method: str
    is_ours: bool
    cells: list[Cell]
    beats_ours_in: str


class Block(NamedTuple):
    """One table: the measures of a group for every method of a sequence."""

    question: str
    kinds: list[Kind]
    rows: list[Line]
    chance: float | None


def write_evaluation_report(
    path: str | Path,
    evaluation: Mapping[str, Any],
    by_site: Sequence[Row],
    pictures: Mapping[str, Mapping[str, Path]],
) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    evaluation:
        As `evaluation.json` holds it.
    by_site:
        Rows of ``sequence, site, method, noise, smoothness_mm``: means over the site's images.
    pictures:
        PNG files by sequence and kind; they become part of the page.
    """
    sequences = list(by_sequence(evaluation))
    about = evaluation["about"]
    context = {
        "about": about,
        "sequences": sequences,
        "sentences": {name: sentences(evaluation, name) for name in sequences},
        "blocks": {name: blocks(evaluation, name) for name in sequences},
        "pictures": {
            name: [(CAPTIONS[kind], data_uri(file)) for kind, file in own.items()] for name, own in pictures.items()
        },
        "sites": _site_rows(by_site),
        "labels": _label_rows(about.get("labels", {})),
        "label_kinds": [MEASURES[name] for name in LABEL_MEASURES],
        "problems": about["problems"][:PROBLEMS],
        "other_problems": len(about["problems"][PROBLEMS:]),
        "kinds": MEASURES,
        "times": _times(about["processor_seconds"]),
        "has_ours": OURS in evaluation,
    }
    styles = ["report.css", "evaluation.css"]
    write_page(path, "evaluation.html.j2", styles, ["evaluation.js"], context)


def blocks(evaluation: Mapping[str, Any], sequence: str) -> list[Block]:
    """The tables of a sequence, without measures that no method has."""
    methods = [name for name in ordered(evaluation.keys() - {"about", "differences"}) if sequence in evaluation[name]]
    found = []
    for group, question in GROUPS.items():
        names = [name for name, kind in MEASURES.items() if kind.group == group]
        names = [name for name in names if any(name in evaluation[method][sequence] for method in methods)]
        if not names:
            continue
        rows = []
        for method in methods:
            cells = [_cell(evaluation, method, sequence, name) for name in names]
            if any(cell.value is not None for cell in cells):
                won = where_it_beats_ours(evaluation, sequence, method, names)
                rows.append(Line(shown_name(method), method == OURS, cells, won))
        chances = {evaluation[method][sequence].get(name, {}).get("chance") for method in methods for name in names}
        chance = max(chances - {None}, default=None) if group == "site" else None
        found.append(Block(question, [MEASURES[name] for name in names], rows, chance))
    return found


def _cell(evaluation: Mapping[str, Any], method: str, sequence: str, name: str) -> Cell:
    found = evaluation[method][sequence].get(name)
    if found is None:
        return Cell("\N{EN DASH}", "", None, "", "not measured")
    ends = [found["low"], found["high"]]
    interval = "" if None in ends else " to ".join(text_of(name, end) for end in ends)
    difference = evaluation["differences"].get(method, {}).get(sequence, {}).get(name)
    title = f"{found['n']} subjects" + (_against(name, difference) if difference else "")
    verdict = verdicts(evaluation, sequence, method).get(name, "")
    return Cell(text_of(name, found["value"]), interval, found["value"], verdict, title)


def _against(name: str, difference: Mapping[str, Any]) -> str:
    ends = (
        ""
        if difference["low"] is None
        else f" ({text_of(name, difference['low'])} to {text_of(name, difference['high'])})"
    )
    chance = "" if difference["p"] is None else f", p {difference['p']:.3g}"
    return f"; ours minus this: {text_of(name, difference['value'])}{ends}{chance}"


def _site_rows(by_site: Sequence[Row]) -> list[dict[str, Any]]:
    place = {name: i for i, name in enumerate(ordered({row["method"] for row in by_site}))}
    rows = sorted(by_site, key=lambda row: (row["sequence"], place[row["method"]], str(row["site"])))
    shown = []
    for row in rows:
        cells = {
            name: None if row[name] is None else (text_of(name, row[name]), row[name])
            for name in ("noise", "smoothness_mm")
        }
        shown.append({**row, **cells, "method": shown_name(row["method"])})
    return shown


def _label_rows(labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sequence, site, method, images and a cell per measure of the tissues that others drew; None where it is lacking."""
    shown = []
    for sequence, methods in labels.items():
        for site, method, means in site_lines(methods):
            cells = [(text_of(name, means[name]), means[name]) if name in means else None for name in LABEL_MEASURES]
            facts = {"sequence": sequence, "site": site, "method": shown_name(method), "images": means["n"]}
            shown.append({**facts, "cells": cells})
    return shown


def _times(seconds: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float, int, float]]:
    """Measure, processor seconds a call, calls, seconds in all; the dearest first."""
    rows = [
        (name, own["seconds"] / max(own["calls"], 1), int(own["calls"]), own["seconds"])
        for name, own in seconds.items()
    ]
    return sorted(rows, key=lambda row: -row[3])
