"""Measures of whole cohorts on Ray: a task per sequence and method gathers what single images left in the object store."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray

from mmh_ray.config import EvaluateConfig
from mmh_ray.distributed.tasks import run_tasks
from mmh_ray.errors import DataError
from mmh_ray.evaluation import clustering
from mmh_ray.evaluation.catalogue import OURS, RAW
from mmh_ray.evaluation.feature_baselines import FEATURE_METHODS, harmonize_features
from mmh_ray.evaluation.measuring import IMAGE_MEASURES, PAIR_MEASURES, RETEST, Bulk, Clock
from mmh_ray.evaluation.population import Figures, Population, population_figures
from mmh_ray.evaluation.scans import Row
from mmh_ray.evaluation.subject import Bulks, Score, Training
from mmh_ray.evaluation.summary import Entry, Figure, difference, entry, interval

Key = tuple[str, str]
"""Sequence and method."""

LEAST_MAPPED = 8
"""Images below which no map of the features is drawn."""


@dataclass(frozen=True)
class Cohort:
    """What cohort measures are taken from.

    Attributes
    ----------
    rows:
        Facts of the scored images by sequence and method.
    kept:
        References to every case's :data:`~mmh_ray.evaluation.subject.Bulks`, by sequence.
    training:
        Manifest row and facts of training images, by sequence.
    """

    rows: Mapping[Key, Sequence[Row]]
    kept: Mapping[str, Sequence[ray.ObjectRef]]
    training: Mapping[str, Sequence[tuple[Row, Training]]]
    config: EvaluateConfig


class CohortScore(NamedTuple):
    """Figures of one method and sequence, places of its images on the map (None: not drawn), clock."""

    figures: Figures
    places: np.ndarray | None
    clock: Clock


def cohort_figures(cohort: Cohort, total: Score) -> tuple[dict[Key, Figures], dict[Key, np.ndarray]]:
    """Figures of every sequence and method, single images' and cohort's, and places on the maps."""
    keys = [key for key in cohort.rows if cohort.rows[key]]
    features = [
        (sequence, method) for sequence in cohort.kept for method in FEATURE_METHODS if cohort.training.get(sequence)
    ]
    figures = image_figures(total)
    places: dict[Key, np.ndarray] = {}
    for done in run_tasks(_measure, [*keys, *features], cohort, "Comparing", "methods"):
        if isinstance(done.result, Exception):
            total.notes.append(f"{done.item[0]}: no cohort measures of {done.item[1]}: {done.result}")
            continue
        figures.setdefault(done.item, {}).update(done.result.figures)
        total.clock.add(done.result.clock)
        if done.result.places is not None:
            places[done.item] = done.result.places
    return figures, places


def image_figures(total: Score) -> dict[Key, Figures]:
    """Figures that are means over images or over pairs of images."""
    figures: dict[Key, Figures] = defaultdict(dict)
    groups = ((total.images, IMAGE_MEASURES), (total.pairs, (*PAIR_MEASURES, RETEST)))
    for rows, measures in groups:
        for key, own in _grouped(rows).items():
            for name in measures:
                if known := [row for row in own if row[name] is not None]:
                    figures[key][name] = figure_of(name, known)
    return dict(figures)


def summarise(figures: Mapping[Key, Figures], config: EvaluateConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """``{method: {sequence: {measure: entry}}}``, and the same of the differences of ours to each."""
    values: dict[str, Any] = defaultdict(dict)
    differences: dict[str, Any] = defaultdict(dict)
    for done in run_tasks(_summary, sorted(figures), (figures, config), "Intervals", "methods"):
        if isinstance(done.result, Exception):
            raise done.result
        (sequence, method), (own, against) = done.item, done.result
        values[method][sequence] = own
        if against:
            differences[method][sequence] = against
    return dict(values), dict(differences)


def _summary(
    key: Key, shared: tuple[Mapping[Key, Figures], EvaluateConfig]
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    figures, config = shared
    sequence, method = key
    ours = figures.get((sequence, OURS), {}) if method != OURS else {}
    values, against = {}, {}
    for name, figure in figures[key].items():
        values[name] = entry(interval(figure, config.draws, config.seed), figure.guessed)
        if name in ours and (found := difference(ours[name], figure, config.draws, config.seed)) is not None:
            against[name] = entry(found)
    return _known(values), _known(against)


def _known(entries: Mapping[str, Entry | None]) -> dict[str, Entry]:
    return {name: found for name, found in entries.items() if found is not None}


def _measure(key: Key, cohort: Cohort) -> CohortScore:
    sequence, method = key
    clock, features_only = Clock(), method in FEATURE_METHODS
    source = RAW if features_only else method
    rows = cohort.rows[sequence, source]
    bulks, raw = _bulks(cohort.kept[sequence], rows, source)
    names = sorted(raw[0].features)
    before, after = (_matrix([bulk.features for bulk in own], names) for own in (raw, bulks))
    if features_only:
        after = clock.run(method, sequence, _adjusted, method, before, rows, cohort.training[sequence], names)
        if after is None:
            raise DataError("; ".join(clock.said()), "features that can be adjusted", "Add training subjects.")
        bulks = []
    slices = [bulk.slices for bulk in raw]
    raw_slices = np.stack(slices) if bulks and all(own is not None for own in slices) else None  # type: ignore[arg-type]
    population = Population(method, rows, after, before, bulks, raw_slices)
    figures = population_figures(population, cohort.config.seed, clock)
    drawn = len(rows) >= LEAST_MAPPED
    places = (
        clock.run("tsne", method, clustering.tsne, clustering.standardise(after), cohort.config.seed) if drawn else None
    )
    return CohortScore(figures, places, clock)


def _bulks(kept: Iterable[ray.ObjectRef], rows: Sequence[Row], method: str) -> tuple[list[Bulk], list[Bulk]]:
    """What the method's and the raw images left, in the order of the rows; one case is looked at at a time."""
    names = {row["image_id"] for row in rows}
    found: dict[str, tuple[Bulk, Bulk]] = {}
    for ref in kept:
        case: Bulks = ray.get(ref)
        found |= {name: (case[method, name], case[RAW, name]) for own, name in case if own == method and name in names}
    pairs = [found[row["image_id"]] for row in rows]
    return [own for own, _ in pairs], [raw for _, raw in pairs]


def _adjusted(
    method: str, before: np.ndarray, rows: Sequence[Row], training: Sequence[tuple[Row, Training]], names: Sequence[str]
) -> np.ndarray:
    """Features of the scored images after a harmonization of features that was fitted on training images alone."""
    learned = _matrix([facts.features for _, facts in training], names)
    sites = [row["site"] for row in itertools.chain((row for row, _ in training), rows)]
    train = np.arange(len(sites)) < len(training)
    return harmonize_features(method, np.concatenate([learned, before]), sites, train)[len(training) :]


def _matrix(features: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """``(n, F)``; 0 where an image has no such feature."""
    table = np.array([[own.get(name, 0.0) for name in names] for own in features], dtype=np.float64)
    return np.nan_to_num(table, nan=0.0, posinf=0.0, neginf=0.0)


def _grouped(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["sequence"], row["method"]].append(row)
    return groups


def figure_of(name: str, rows: Sequence[Row]) -> Figure:
    """A mean over images, or over pairs named by both images."""
    units = tuple(row.get("image_id") or " ".join(row["images"]) for row in rows)
    return Figure(np.array([row[name] for row in rows], dtype=np.float64), units, tuple(row["subject"] for row in rows))
