"""Evaluation of a harmonized archive on Ray: ours beside the classical opponents, on subjects never trained on.

One task is one subject and sequence: it reads the subject's scans, applies every method and sends back small numbers
and binned statistics, so that memory does not grow with the scans. Baselines are fitted on training images only.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mmh_ray.bids.entities import output_path, parse
from mmh_ray.bids.manifest import read_manifest
from mmh_ray.config import Config
from mmh_ray.distributed.cluster import connect
from mmh_ray.errors import DataError
from mmh_ray.evaluation import figures
from mmh_ray.evaluation.baselines import BASELINES, Baseline
from mmh_ray.evaluation.metrics import truth_error, w1
from mmh_ray.evaluation.subject import (
    IMAGE_MEASURES,
    METHODS,
    OURS,
    PAIR_MEASURES,
    Case,
    Row,
    Score,
    Settings,
    score,
    training_quantiles,
)
from mmh_ray.progress import progress
from mmh_ray.provenance import code_version, whole_file, write_json

log = logging.getLogger(__name__)

TRAINING_IMAGES = 4
"""Training images per site and sequence from which baselines are fitted."""

MEASURES = (*PAIR_MEASURES, *IMAGE_MEASURES, "truth_nrmse")
"""What every method is given, as a number or None."""

_COLUMNS = ["image_id", "uri", "subject", "site", "sequence", "split", "mask_uri", "status"]
_PICTURED = {"raw": "raw", "n4_histogram_matching": "N4 + HM", OURS: "harmonized", "truth": "truth"}


def evaluate(manifest: str, harmonized: str, out: str, config: Config, truth: str | None = None) -> dict[str, Any]:
    """Score every method on traveling subjects; write ``metrics.json``, ``per_image.parquet`` and ``figures/*.png``.

    Parameters
    ----------
    manifest:
        Path of the manifest. Sequences that ``config.model.sequences`` does not name are left out and noted.
    harmonized:
        Folder of the harmonized derivatives.
    out:
        Folder to write to. In ``metrics.json`` the sequences stand at the top level, the other keys beside them.
    config:
        Uses ``model.sequences`` and ``prepare.n4_iterations``.
    truth:
        Folder ``derivatives/truth`` of a simulated archive; without it the measures that need truth are None.

    Returns
    -------
    dict
        ``results`` (sequence, method, measure: float or None), ``missing`` (images without harmonized output),
        ``failed`` (images that could not be read or scored), ``notes``, ``subjects``, ``seconds``, ``code_version``.

    Raises
    ------
    DataError
        If the manifest cannot be read or holds no usable image of these sequences.
    """
    start, notes = time.monotonic(), list[str]()
    rows = _usable_rows(manifest, harmonized, config.model.sequences, notes)
    cases = _cases(rows, notes)
    connect()
    total = Score(notes=notes)
    baselines = _fit(_training_rows(rows), config.prepare.n4_iterations, total)
    pictured = _score_all(cases, Settings(baselines, truth, config.prepare.n4_iterations), total)
    results = _results(total, sorted({case.sequence for case in cases}))
    _log_unscored(total)
    _write_figures(Path(out, "figures"), total, pictured)
    _write_per_image(Path(out, "per_image.parquet"), total)
    facts = {
        "missing": _by_image(total.missing),
        "failed": _by_image(total.failed),
        "notes": sorted(set(total.notes)),
        "subjects": {name: sum(case.sequence == name for case in cases) for name in results},
        "seconds": round(time.monotonic() - start, 1),
        "code_version": code_version(),
    }
    write_json(Path(out, "metrics.json"), {**results, **facts})
    return {"results": results, **facts}


def _usable_rows(manifest: str, harmonized: str, sequences: Sequence[str], notes: list[str]) -> list[Row]:
    """Rows of status ok and a known sequence by image_id, each with the path where its output should lie."""
    rows = [row for row in read_manifest(manifest).select(_COLUMNS).to_pylist() if row["status"] == "ok"]
    others = [row["sequence"] for row in rows if row["sequence"] not in sequences]
    notes += [f"{others.count(name)} images of {name} left out: not in model.sequences" for name in sorted(set(others))]
    rows = [row for row in rows if row["sequence"] in sequences]
    if not rows:
        remedy = "Set model.sequences to the archive's suffixes, or see the manifest's column reason."
        raise DataError(f"{manifest}: no usable image", f"images of {', '.join(sequences)}", remedy)
    return _by_image(row | {"harmonized": str(Path(harmonized, output_path(parse(row["uri"]))))} for row in rows)


def _cases(rows: Iterable[Row], notes: list[str]) -> list[Case]:
    """Traveling subjects of each sequence; without any, the test split, or everybody where that is a single site."""
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["sequence"]][row["subject"]].append(row)
    cases = []
    for sequence, subjects in sorted(groups.items()):
        chosen = {name: own for name, own in subjects.items() if _sites(own) > 1}
        if not chosen:
            tested = {name: own for name, own in subjects.items() if own[0]["split"] == "test"}
            chosen = tested if _sites(itertools.chain(*tested.values())) > 1 else dict(subjects)
            notes.append(f"{sequence}: no subject at two sites, so no PSNR or SSIM; W1 is between pooled sites")
        shown = max(chosen, key=lambda name: _sites(chosen[name]))
        pictured = {shown} if _sites(chosen[shown]) > 1 else set()
        cases += [Case(name, sequence, tuple(own), name in pictured) for name, own in chosen.items()]
    return cases


def _sites(rows: Iterable[Row]) -> int:
    return len({row["site"] for row in rows})


def _training_rows(rows: Iterable[Row]) -> list[Row]:
    """At most :data:`TRAINING_IMAGES` of split train per site and sequence, first by image_id."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["split"] == "train":
            groups[row["sequence"], row["site"]].append(row)
    return [row for own in groups.values() for row in own[:TRAINING_IMAGES]]


def _fit(rows: Sequence[Row], iterations: tuple[int, ...], total: Score) -> dict[str, dict[str, Baseline]]:
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = defaultdict(dict)
    for row, quantiles in _run(training_quantiles, rows, iterations, "Fitting baselines", "images"):
        if isinstance(quantiles, Exception):
            total.fail(row, quantiles)
        else:
            found[row["sequence"]][row["image_id"]] = quantiles
    fitted: dict[str, dict[str, Baseline]] = {}
    for sequence in {row["sequence"] for row in rows} & found.keys():
        images = found[sequence]
        before, after = zip(*(images[name] for name in sorted(images)), strict=True)
        kinds = BASELINES.items()
        fitted[sequence] = {name: kind.from_quantiles(after if kind.bias_corrected else before) for name, kind in kinds}
    return fitted


def _score_all(cases: Sequence[Case], settings: Settings, total: Score) -> dict[str, Score]:
    """Gather every case's score in ``total``; give back those with slices, by sequence."""
    pictured: dict[str, Score] = {}
    for sequence in sorted({case.sequence for case in cases} - settings.baselines.keys()):
        total.notes.append(f"{sequence}: no image of split train, so no baseline but ours can be scored")
    for case, found in _run(score, cases, settings, "Evaluating", "subjects"):
        if isinstance(found, Exception):
            for row in case.rows:
                total.fail(row, found)
            continue
        for name in ("images", "pairs", "missing", "failed", "notes"):
            getattr(total, name).extend(getattr(found, name))
        if found.sites:
            pictured[case.sequence] = found
    total.images.sort(key=lambda row: (row["sequence"], row["image_id"], METHODS.index(row["method"])))
    total.pairs.sort(key=lambda row: (row["sequence"], row["images"], METHODS.index(row["method"])))
    return pictured


def _run(task: Callable, items: Sequence[Any], shared: Any, title: str, unit: str) -> Iterator[tuple[Any, Any]]:
    """Yield every item with its result, or the exception that is its alone; few tasks wait at a time."""
    remote, argument = ray.remote(num_cpus=1)(task), ray.put(shared)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, pending = iter(items), dict[Any, Any]()
    with progress(len(items), title, unit=unit) as advance:
        while True:
            fresh = itertools.islice(waiting, limit - len(pending))
            pending |= {remote.remote(item, argument): item for item in fresh}
            if not pending:
                return
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            item = pending.pop(ready)
            try:
                result = ray.get(ready)
            except Exception as error:  # it belongs to its item, not to the job
                result = getattr(error, "cause", None) or error
            advance(1)
            yield item, result


def _results(total: Score, sequences: Sequence[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    images, pairs = _grouped(total.images), _grouped(total.pairs)
    keys = {sequence: [(sequence, method) for method in METHODS] for sequence in sequences}
    return {name: {key[1]: _summary(images[key], pairs[key]) for key in own} for name, own in keys.items()}


def _summary(images: list[Row], pairs: list[Row]) -> dict[str, float | None]:
    values = {name: _mean(row[name] for row in pairs) for name in PAIR_MEASURES}
    values |= {name: _mean(row[name] for row in images) for name in IMAGE_MEASURES}
    if not pairs:
        values["w1"] = _mean(w1(a, b) for a, b in itertools.combinations(_pooled(images).values(), 2))
    values["truth_nrmse"] = None
    if known := [row for row in images if row["joint"] is not None]:
        error = truth_error([row["joint"] for row in known])
        values["truth_nrmse"] = error.cohort
        for row, own in zip(known, error.per_image, strict=True):
            row["truth_nrmse"] = float(own)
    return {name: values[name] for name in MEASURES}


def _grouped(rows: Iterable[Row]) -> defaultdict[tuple[str, str], list[Row]]:
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["sequence"], row["method"]].append(row)
    return groups


def _pooled(images: Iterable[Row]) -> dict[str, np.ndarray]:
    """Scaled brain intensities by site, every image with the same weight."""
    sites: dict[str, list[np.ndarray]] = defaultdict(list)
    for row in images:
        sites[row["site"]].append(row["quantiles"])
    return {site: np.concatenate(parts) for site, parts in sorted(sites.items())}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _by_image(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["image_id"])


def _log_unscored(total: Score) -> None:
    for row in _by_image(total.missing):
        log.warning("%s has no harmonized output at %s", row["image_id"], row["expected"])
    for row in _by_image(total.failed):
        log.warning("%s is not scored: %s", row["image_id"], row["reason"])


def _write_figures(folder: Path, total: Score, pictured: Mapping[str, Score]) -> None:
    groups = _grouped(total.images)
    for sequence in sorted({row["sequence"] for row in total.images}):
        before, after = (_pooled(groups[sequence, method]) for method in ("raw", OURS))
        if after:
            path = folder / f"{sequence}_histograms.png"
            figures.histograms(path, before, after, f"{sequence}: brain intensities by site")
    for sequence, shown in sorted(pictured.items()):
        rows = {label: shown.slices[key] for key, label in _PICTURED.items() if shown.slices.get(key)}
        path = folder / f"{sequence}_before_after.png"
        figures.before_after(path, rows, shown.sites, f"{sequence}: one person at every site")
        if source := shown.slices["raw"]:
            path = folder / f"{sequence}_differences.png"
            figures.differences(path, source, shown.slices[OURS], shown.sites, f"{sequence}: differences")


def _write_per_image(path: Path, total: Score) -> None:
    """A row per image and method; measures between sites are means over the pairs the image is part of."""
    pairs: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for pair in total.pairs:
        for image_id in pair["images"]:
            pairs[pair["method"], image_id].append(pair)
    texts = ("image_id", "subject", "site", "sequence", "method")
    rows = [dict(image) for image in total.images]
    for row in rows:
        own = pairs[row["method"], row["image_id"]]
        row |= {name: _mean(pair[name] for pair in own) for name in PAIR_MEASURES}
    schema = [(name, pa.string()) for name in texts] + [(name, pa.float64()) for name in MEASURES]
    columns = {name: [row[name] for row in rows] for name, _ in schema}
    with whole_file(path) as partial:
        pq.write_table(pa.table(columns, schema=pa.schema(schema)), partial)
