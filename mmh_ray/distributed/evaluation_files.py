"""What an evaluation leaves on disk: figures of every image, pictures, JSON and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mmh_ray.evaluation import figures as draw
from mmh_ray.evaluation.baselines import BASELINES
from mmh_ray.evaluation.catalogue import BEST_KNOWN, MEASURES, OURS, RAW, ordered, shown_name
from mmh_ray.evaluation.evaluation_report import write_evaluation_report
from mmh_ray.evaluation.feature_baselines import FEATURE_METHODS
from mmh_ray.evaluation.measuring import FACTS
from mmh_ray.evaluation.population import Figures
from mmh_ray.evaluation.scans import Row
from mmh_ray.evaluation.subject import Bulks, Score
from mmh_ray.provenance import whole_file, write_json

Key = tuple[str, str]
"""Sequence and method."""

EVALUATION, PER_IMAGE, REPORT = "evaluation.json", "per_image.parquet", "report.html"


class Pictures(NamedTuple):
    """What pictures are made of: pictured cases and kept references by sequence, places of images on the maps."""

    cases: Mapping[str, Sequence[Score]]
    places: Mapping[Key, np.ndarray]
    kept: Mapping[str, Sequence[ray.ObjectRef]]


def write_all(
    out: Path,
    evaluation: Mapping[str, Any],
    figures: Mapping[Key, Figures],
    rows: Mapping[Key, Sequence[Row]],
    pictures: Pictures,
) -> None:
    """Write the Parquet table, the pictures, the report and, last of all, the JSON."""
    table = per_image(figures, rows)
    with whole_file(out / PER_IMAGE) as partial:
        pq.write_table(table, partial)
    names = _write_pictures(out / "figures", rows, pictures)
    write_evaluation_report(out / REPORT, evaluation, _by_site(table), names)
    write_json(out / EVALUATION, evaluation)


def per_image(figures: Mapping[Key, Figures], rows: Mapping[Key, Sequence[Row]]) -> pa.Table:
    """A row per image and method; a measure of pairs is the mean over the pairs that the image is part of."""
    lines = []
    for key, own in sorted(rows.items()):
        found = {name: _by_unit(figure) for name, figure in figures.get(key, {}).items()}
        for row in own:
            facts = {name: row[name] for name in (*FACTS, "method")}
            lines.append(facts | {name: units.get(row["image_id"]) for name, units in found.items()})
    texts = [name for name in (*FACTS, "method") if name != "age"]
    schema = pa.schema(
        [*((name, pa.string()) for name in texts), ("age", pa.float64()), *((name, pa.float64()) for name in MEASURES)]
    )
    return pa.Table.from_pylist(lines, schema=schema)


def _by_unit(figure: Any) -> dict[str, float]:
    """The mean of the units that name an image."""
    values = figure.per_unit
    groups: dict[str, list[float]] = defaultdict(list)
    for unit, value in zip(figure.units, () if values is None else values, strict=values is not None):
        for image_id in unit.split(" "):
            groups[image_id].append(float(value))
    return {image_id: float(np.mean(own)) for image_id, own in groups.items()}


def _by_site(table: pa.Table) -> list[Row]:
    """Mean noise and smoothness of every sequence, site and method."""
    frame = table.select(["sequence", "site", "method", "noise", "smoothness_mm"]).to_pandas()
    means = frame.groupby(["sequence", "site", "method"], as_index=False).mean()
    return means.astype(object).where(means.notna(), None).to_dict("records")


def _write_pictures(folder: Path, rows: Mapping[Key, Sequence[Row]], pictures: Pictures) -> dict[str, dict[str, Path]]:
    """PNG files by sequence and kind."""
    made: dict[str, dict[str, Path]] = defaultdict(dict)
    for sequence in sorted({sequence for sequence, _ in rows}):
        for kind, drawn in (("before_after", _before_after), ("differences", _differences), ("dissimilarity", _unlike)):
            path = folder / f"{sequence}_{kind}.png"
            if drawn(path, sequence, pictures.cases.get(sequence, ())):
                made[sequence][kind] = path
        if (sequence, OURS) in rows:
            path = folder / f"{sequence}_histograms.png"
            before, after = (_quantiles(pictures.kept[sequence], rows[sequence, name], name) for name in (RAW, OURS))
            draw.histograms(path, before, after, f"{sequence}: brain intensities by site")
            made[sequence]["histograms"] = path
        path = folder / f"{sequence}_map.png"
        if _map(path, sequence, rows, pictures.places):
            made[sequence]["map"] = path
    return dict(made)


def _before_after(path: Path, sequence: str, cases: Sequence[Score]) -> bool:
    if not cases:
        return False
    whole = set.intersection(*({*case.slices} for case in cases))
    methods = [
        RAW,
        BEST_KNOWN,
        *(name for name in ordered(whole) if name not in (RAW, BEST_KNOWN) and _is_archive(name)),
    ]
    chosen = [name for name in methods if name in whole] + ["truth"] * ("truth" in whole)
    lines = {shown_name(name): [image for case in cases for image in case.slices[name]] for name in chosen}
    who = "one person at every site" if len(cases) == 1 else "a person of every site"
    draw.before_after(path, lines, [site for case in cases for site in case.sites], f"{sequence}: {who}")
    return True


def _differences(path: Path, sequence: str, cases: Sequence[Score]) -> bool:
    if len(cases) != 1 or not {RAW, OURS} <= cases[0].slices.keys():
        return False
    slices = cases[0].slices
    draw.differences(path, slices[RAW], slices[OURS], cases[0].sites, f"{sequence}: differences")
    return True


def _unlike(path: Path, sequence: str, cases: Sequence[Score]) -> bool:
    """Where the structure of a method's image is not the scan's."""
    whole = set.intersection(*({*case.maps} for case in cases)) if cases else set()
    chosen = [name for name in ordered(whole) if name != RAW and (name == BEST_KNOWN or _is_archive(name))]
    if chosen:
        lines = {shown_name(name): [image for case in cases for image in case.maps[name]] for name in chosen}
        draw.before_after(path, lines, [site for case in cases for site in case.sites], f"{sequence}: unlike the scan")
    return bool(chosen)


def _map(path: Path, sequence: str, rows: Mapping[Key, Sequence[Row]], places: Mapping[Key, np.ndarray]) -> bool:
    chosen = [
        name
        for name in ordered(method for own, method in places if own == sequence)
        if name in (RAW, BEST_KNOWN) or _is_archive(name)
    ]
    if not chosen:
        return False
    panels = {
        shown_name(name): (places[sequence, name], [row["site"] for row in rows[sequence, name]]) for name in chosen
    }
    draw.feature_map(path, panels, f"{sequence}: images by their features (t-SNE), coloured by site")
    return True


def _is_archive(method: str) -> bool:
    return method == OURS or method not in (*BASELINES, *FEATURE_METHODS, "truth")


def _quantiles(kept: Iterable[ray.ObjectRef], rows: Iterable[Row], method: str) -> dict[str, np.ndarray]:
    """Scaled brain intensities by site, every image with the same weight."""
    sites = {row["image_id"]: row["site"] for row in rows}
    groups: dict[str, list[np.ndarray]] = defaultdict(list)
    for ref in kept:
        case: Bulks = ray.get(ref)
        for (own, image_id), bulk in case.items():
            if own == method and image_id in sites:
                groups[sites[image_id]].append(np.array(bulk.quantiles))
    return {site: np.concatenate(parts) for site, parts in sorted(groups.items())}
