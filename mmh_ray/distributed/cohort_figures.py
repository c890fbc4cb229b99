"""Measures of whole cohorts on Ray: a task per sequence and method gathers what single images left in the object store.

Figures of images stay there, too: what comes back to the driver does not grow with the cohort but for the places on its maps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ray

from mmh_ray.config import EvaluateConfig
from mmh_ray.distributed.task_pool import run_tasks
from mmh_ray.evaluation.baselines.feature_baselines import FEATURE_METHODS
from mmh_ray.evaluation.inputs.scans import Row
from mmh_ray.evaluation.metrics.cohort_metrics import Figures
from mmh_ray.evaluation.metrics.label_metrics import LABEL_MEASURES
from mmh_ray.evaluation.metrics.method import Shown, cohort_figures, gather, image_figures
from mmh_ray.evaluation.metrics.per_image import FACTS, Clock
from mmh_ray.evaluation.metrics.registry import MEASURES, OURS, RAW, floor_of
from mmh_ray.evaluation.metrics.subject import Score, Training
from mmh_ray.evaluation.report.files import images_table
from mmh_ray.evaluation.statistics.summary import Entry, Figure, difference, entry, interval, site_means

Key = tuple[str, str]
"""Sequence and method."""


@dataclass(frozen=True)
class Cohort:
    """What cohort measures are taken from.

    Attributes
    ----------
    methods:
        Methods with any image, by sequence.
    kept:
        References to every case's :class:`~mmh_ray.evaluation.metrics.method.Kept`, by sequence.
    training:
        Manifest row and facts of training images, by sequence.
    """

    methods: Mapping[str, Sequence[str]]
    kept: Mapping[str, Sequence[ray.ObjectRef]]
    training: Mapping[str, Sequence[tuple[Row, Training]]]
    config: EvaluateConfig


class Measured(NamedTuple):
    """What a method leaves in the object store: facts of its images (none: it makes no images), figures by measure."""

    rows: list[Row]
    figures: Figures


class Summary(NamedTuple):
    """What an evaluation holds of all methods.

    Attributes
    ----------
    values, differences:
        ``{method: {sequence: {measure: entry}}}``, and the same of the differences of ours to each.
    tables:
        References to tables of images' figures.
    labels:
        ``{sequence: {method: {site: {measure: mean, "n": images}}}}`` of the tissues that others drew; empty without label maps.
    """

    values: dict[str, Any]
    differences: dict[str, Any]
    tables: dict[Key, ray.ObjectRef]
    labels: dict[str, dict[str, Any]]


def measure_cohort(cohort: Cohort, total: Score) -> tuple[dict[Key, ray.ObjectRef], dict[Key, Shown]]:
    """References to every method's :class:`Measured`, and what pictures need."""
    keys = [(sequence, method) for sequence, methods in cohort.methods.items() for method in methods]
    keys += [
        (sequence, method) for sequence in cohort.kept for method in FEATURE_METHODS if cohort.training.get(sequence)
    ]
    measured: dict[Key, ray.ObjectRef] = {}
    shown: dict[Key, Shown] = {}
    for done in run_tasks(_measure, keys, cohort, "Comparing", "methods", keep=True):
        if isinstance(done.result, Exception):
            total.notes.append(f"{done.item[0]}: no measures of {done.item[1]}: {done.result}")
            continue
        assert done.kept is not None
        shown[done.item], clock = done.result
        total.clock.add(clock)
        measured[done.item] = done.kept
    return measured, shown


def summarise(measured: Mapping[Key, ray.ObjectRef], config: EvaluateConfig) -> Summary:
    """Values, differences and tables of all methods."""
    found = Summary(defaultdict(dict), defaultdict(dict), {}, defaultdict(dict))
    for done in run_tasks(_summary, sorted(measured), (measured, config), "Intervals", "methods", keep=True):
        if isinstance(done.result, Exception):
            raise done.result
        (sequence, method), (own, against, labels) = done.item, done.result
        found.values[method][sequence] = own
        if labels:
            found.labels[sequence][method] = labels
        if against:
            found.differences[method][sequence] = against
        if method not in FEATURE_METHODS:
            assert done.kept is not None
            found.tables[done.item] = done.kept
    return Summary(dict(found.values), dict(found.differences), found.tables, dict(found.labels))


def entries_of(figures: Figures, ours: Figures, config: EvaluateConfig) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """What JSON holds of a method's figures and of ours minus them; of a ratio whose best is 1, distances to 1 are compared."""
    values, against = {}, {}
    for name, figure in figures.items():
        values[name] = entry(interval(figure, config.draws, config.seed), figure.guessed)
        if name in ours:
            floor = floor_of(name, len({*(figure.strata or ())}))
            mine, theirs = (_judged(name, own) for own in (ours[name], figure))
            if (found := difference(mine, theirs, config.draws, config.seed, floor)) is not None:
                against[name] = entry(found)
    return _known(values), _known(against)


def _measure(key: Key, cohort: Cohort) -> tuple[tuple[Shown, Clock], Measured]:
    """Figures of single images are kept even where those of the cohort fail."""
    sequence, method = key
    clock, features_only = Clock(), method in FEATURE_METHODS
    found = gather((ray.get(ref) for ref in cohort.kept[sequence]), RAW if features_only else method)
    training = cohort.training.get(sequence, ())
    figures, shown = {} if features_only else image_figures(found), Shown({}, {})
    try:
        more, shown = cohort_figures(method, found, training, cohort.config.seed, clock)
        figures |= more
    except Exception as error:
        if features_only:
            raise
        clock.notes[f"{sequence}: no cohort measures, {error}"].append(method)
    rows = [] if features_only else [{name: row[name] for name in (*FACTS, "method")} for row in found.rows]
    return (shown, clock), Measured(rows, figures)


def _summary(key: Key, shared: tuple[Mapping[Key, ray.ObjectRef], EvaluateConfig]) -> tuple[Any, Any]:
    measured, config = shared
    (sequence, method), own = key, ray.get(measured[key])
    has_ours = method != OURS and (sequence, OURS) in measured
    ours = ray.get(measured[sequence, OURS]).figures if has_ours else {}
    sites = {row["image_id"]: row["site"] for row in own.rows}
    labelled = {name: own.figures[name] for name in LABEL_MEASURES if name in own.figures}
    small = (*entries_of(own.figures, ours, config), site_means(labelled, sites))
    return small, images_table(own.rows, own.figures)


def _judged(name: str, figure: Figure) -> Figure:
    return figure if figure.reduce else replace(figure, values=MEASURES[name].judged(figure.values))


def _known(entries: Mapping[str, Entry | None]) -> dict[str, Entry]:
    return {name: found for name, found in entries.items() if found is not None}
