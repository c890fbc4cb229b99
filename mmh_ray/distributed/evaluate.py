"""Evaluation on Ray: an archive, outputs of any methods for it, and the classical opponents, measured the same way.

One task is one subject and sequence: it reads the subject's scans, applies every method and sends back small numbers;
what the cohort's measures need besides stays in the object store, so that the driver's memory does not grow with the
scans. Baselines are fitted on training images only.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray

from mmh_ray.bids.labels import add_labels
from mmh_ray.bids.lesions import add_lesions
from mmh_ray.bids.status import utc_now
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.distributed.cohort_figures import Cohort, measure_cohort, summarise
from mmh_ray.distributed.selection import (
    check_archives,
    choose_cases,
    data_hash,
    note_untrained,
    training_rows,
    usable_rows,
)
from mmh_ray.distributed.task_pool import run_tasks
from mmh_ray.errors import ConfigError
from mmh_ray.evaluation.baselines.image_baselines import BASELINES, Baseline, Unfitted
from mmh_ray.evaluation.inputs.scans import Case, Row, Settings, common_masks, scan_mask
from mmh_ray.evaluation.metrics.method import Kept
from mmh_ray.evaluation.metrics.registry import AGAIN, BEST_KNOWN, RAW, ordered
from mmh_ray.evaluation.metrics.subject import Score, Training, score, training_facts
from mmh_ray.evaluation.promotion.comparability import conditions
from mmh_ray.evaluation.report.files import FIGURES, Pictures, write_all
from mmh_ray.models.style.vectors import style_vectors
from mmh_ray.provenance import check_place, code_version

log = logging.getLogger(__name__)

Trained = dict[str, list[tuple[Row, Training]]]
"""Manifest rows and facts of training images by sequence."""


def evaluate(
    archives: Mapping[str, str],
    out: str,
    config: Config,
    truth: str | None = None,
    model: str | None = None,
    labels: str | None = None,
) -> dict[str, Any]:
    """Measure every method; write `evaluation.json`, `per_image.parquet`, `figures/*.png` and `report.html` to ``out``.

    Parameters
    ----------
    archives:
        Folder by name. `raw` is the BIDS archive (or its manifest), `ours` what differences are taken from; any other
        folder of volumes in BIDS naming is a method, NAME_twice the archive NAME harmonized once more.
    config:
        Uses ``evaluate``, ``style``, ``manifest``, ``model.sequences`` and ``prepare.n4_iterations``.
    truth:
        Folder `derivatives/truth` of a simulated archive, for the measures that need it.
    model:
        URI of the model behind `ours`, to be cited.
    labels:
        Folder of label maps `*_dseg.nii.gz` in BIDS naming; None: those in the `derivatives` of `raw`.

    Returns
    -------
    dict
        ``{method: {sequence: {measure: {value, low, high, n}}}}``, and under ``differences`` the same of ours minus each
        with ``p``; under ``about`` who was scored, ``problems`` (images without usable output), ``notes``, times, and under ``labels``
        ``{sequence: {method: {site: {measure: mean, "n": images}}}}`` of the tissues that others drew.

    Raises
    ------
    ConfigError
        If an archive's name cannot be used or there is none named raw.
    DataError
        If a folder cannot be read, or nothing can be scored.
    """
    check_archives(archives)
    check_place(Path(out, FIGURES, "picture"), out, ConfigError)
    start, started, total = time.monotonic(), utc_now().isoformat(timespec="seconds"), Score()
    connect()
    rows = usable_rows(archives, out, config, total.notes, total.problems)
    add_lesions(rows)
    total.notes += add_labels(rows, labels)
    cases = choose_cases(rows, config, total.notes)
    scored = {row["image_id"] for case in cases for row in case.rows}
    total.problems = [row for row in total.problems if row["method"] == RAW or row["image_id"] in scored]
    training = training_rows(rows)
    note_untrained(training, cases, total.notes)
    trained = _train(training, config.prepare.n4_iterations, total)
    baselines = {case.sequence: _fit(trained.get(case.sequence, [])) for case in cases}
    _note_unfitted(baselines, total)
    methods = tuple(ordered([*BASELINES, *(name for name in archives if not name.endswith(AGAIN))]))
    sliced, common = _sliced(methods, config), _common(cases, total)
    style = style_vectors(config.style, total.notes) if sliced else None
    table = config.evaluate.label_table
    settings = Settings(methods, baselines, truth, config.prepare.n4_iterations, sliced, common, style, table)
    scores = _score_all(cases, settings, total)
    measured, shown = measure_cohort(Cohort(scores.methods, scores.kept, trained, config.evaluate), total)
    summary = summarise(measured, config.evaluate)
    problems = sorted(total.problems, key=lambda row: (row["method"], row["image_id"]))
    about = {
        "archives": dict(archives),
        "model": model,
        "started": started,
        "data_hash": data_hash(cases),
        "conditions": conditions((row for case in cases for row in case.rows), truth, config),
        **_counts(cases),
        "labels": {sequence: summary.labels[sequence] for sequence in sorted(summary.labels)},
        "problems": problems,
        "notes": sorted({*total.notes, *total.clock.said()}),
        "processor_seconds": _times(total),
        "probe_trainings": dict(sorted(total.clock.trainings.items())),
        "seconds": round(time.monotonic() - start, 1),
        "code_version": code_version(),
    }
    for problem in problems:
        log.warning("%s of %s is not scored: %s", problem["image_id"], problem["method"], problem["reason"])
    evaluation = {**summary.values, "differences": summary.differences, "about": about}
    tables = (ray.get(summary.tables[key]) for key in sorted(summary.tables))
    write_all(Path(out), evaluation, tables, Pictures(scores.pictured, shown))
    return evaluation


def _sliced(methods: Sequence[str], config: Config) -> frozenset[str]:
    """Methods whose images the convolutional probes judge."""
    some = [name for name in methods if name in (RAW, BEST_KNOWN) or name not in BASELINES]
    return frozenset({"all": methods, "some": some, "none": ()}[config.evaluate.cnn])


def _common(cases: Sequence[Case], total: Score) -> dict[tuple[str, tuple[int, ...]], np.ndarray]:
    """What is brain in everybody, of sequences with people who have several images."""
    several = {case.sequence for case in cases if len(case.rows) > 1}
    rows = [row for case in cases for row in case.rows if case.sequence in several]
    tasks = run_tasks(_mask, rows, None, "Reading masks", "images")
    common = common_masks((done.item, done.result) for done in tasks if not isinstance(done.result, Exception))
    if several - {sequence for sequence, _ in common}:
        total.notes.append("no part of the grid is brain in everybody: people cannot be looked for")
    return common


def _mask(row: Row, _shared: None) -> np.ndarray:
    return scan_mask(row)


def _train(rows: Sequence[Row], iterations: tuple[int, ...], total: Score) -> Trained:
    """Facts of the training images that can be read, in the order of the rows."""
    found: dict[str, Training] = {}
    for done in run_tasks(training_facts, rows, iterations, "Fitting baselines", "images"):
        if isinstance(done.result, Exception):
            total.fail(RAW, done.item, done.result)
        else:
            found[done.item["image_id"]] = done.result
    trained: Trained = defaultdict(list)
    for row in rows:
        if row["image_id"] in found:
            trained[row["sequence"]].append((row, found[row["image_id"]]))
    return dict(trained)


def _fit(trained: Sequence[tuple[Row, Training]]) -> dict[str, Baseline]:
    """Every baseline from training images; without any, those that learn nothing from a cohort."""
    if not trained:
        return {name: kind() for name, kind in BASELINES.items() if issubclass(kind, Unfitted)}
    before, after = zip(*((facts.before, facts.after) for _, facts in trained), strict=True)
    kinds = BASELINES.items()
    return {name: kind.from_quantiles(after if kind.bias_corrected else before) for name, kind in kinds}


def _note_unfitted(baselines: Mapping[str, Mapping[str, Baseline]], total: Score) -> None:
    for sequence, fitted in baselines.items():
        if lacking := [name for name in BASELINES if name not in fitted]:
            total.notes.append(f"{sequence}: no image of split train, so nothing to fit {', '.join(lacking)} on")


class _Scores(NamedTuple):
    """By sequence: methods with any image, references to what every case kept, and the pictured cases."""

    methods: dict[str, list[str]]
    kept: dict[str, list[ray.ObjectRef]]
    pictured: dict[str, list[Score]]


def _score_case(case: Case, settings: Settings) -> tuple[tuple[Score, set[str]], Kept]:
    """The rows of images and pairs stay in the object store; the rest of the score and the methods it is of come back."""
    found, bulks = score(case, settings)
    light = replace(found, images=[], pairs=[])
    return (light, {row["method"] for row in found.images}), Kept(found.images, found.pairs, bulks)


def _score_all(cases: Sequence[Case], settings: Settings, total: Score) -> _Scores:
    """Score every case and gather notes, problems and seconds in ``total``."""
    kept: dict[str, dict[str, ray.ObjectRef]] = defaultdict(dict)
    pictured: dict[str, dict[str, Score]] = defaultdict(dict)
    methods: dict[str, set[str]] = defaultdict(set)
    for done in run_tasks(_score_case, cases, settings, "Evaluating", "subjects", keep=True):
        case: Case = done.item
        if isinstance(done.result, Exception):
            for row in case.rows:
                total.fail(RAW, row, done.result)
            continue
        found, own = done.result
        total.add(found)
        methods[case.sequence] |= own
        assert done.kept is not None
        kept[case.sequence][case.subject] = done.kept
        if case.pictured:
            pictured[case.sequence][case.subject] = found
    names = {sequence: [name for name in settings.methods if name in own] for sequence, own in methods.items() if own}
    return _Scores(names, _listed(kept), _listed(pictured))


def _listed(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Values in the order of the subjects' names, whatever the order in which tasks ended."""
    return {sequence: [own[subject] for subject in sorted(own)] for sequence, own in groups.items()}


def _counts(cases: Iterable[Case]) -> dict[str, dict[str, int]]:
    """Subjects, images and sites by sequence."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.sequence].append(case)
    return {
        "subjects": {name: len(own) for name, own in groups.items()},
        "images": {name: sum(len(case.rows) for case in own) for name, own in groups.items()},
        "sites": {name: len({row["site"] for case in own for row in case.rows}) for name, own in groups.items()},
    }


def _times(total: Score) -> dict[str, dict[str, float]]:
    """Processor seconds and calls of every measure."""
    clock = total.clock
    return {
        name: {"seconds": round(clock.seconds[name], 3), "calls": clock.calls[name]} for name in sorted(clock.calls)
    }
