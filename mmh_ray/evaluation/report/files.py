"""What an evaluation leaves on disk: figures of every image, pictures, JSON and the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmh_ray.evaluation.inputs.scans import Row
from mmh_ray.evaluation.metrics.cohort_metrics import Figures
from mmh_ray.evaluation.metrics.method import Shown, is_pictured
from mmh_ray.evaluation.metrics.per_image import FACTS
from mmh_ray.evaluation.metrics.registry import BEST_KNOWN, MEASURES, OURS, RAW, ordered, shown_name
from mmh_ray.evaluation.metrics.subject import Score
from mmh_ray.evaluation.report import figures as draw
from mmh_ray.evaluation.report.page import write_evaluation_report
from mmh_ray.provenance import whole_file, write_json

Key = tuple[str, str]
"""Sequence and method."""

EVALUATION, PER_IMAGE, REPORT, FIGURES = "evaluation.json", "per_image.parquet", "report.html", "figures"


PEOPLE_SHOWN = 8
"""Most persons on a map that is coloured by person: as many as there are colours."""
SCHEMA = pa.schema(
    [
        *((name, pa.float64() if name == "age" else pa.string()) for name in (*FACTS, "method")),
        *((name, pa.float64()) for name in MEASURES),
    ]
)
"""Columns of the table of images' figures."""


class Pictures(NamedTuple):
    """What pictures are made of: pictured cases by sequence, and what a method shows by sequence and method."""

    cases: Mapping[str, Sequence[Score]]
    shown: Mapping[Key, Shown]


def write_all(out: Path, evaluation: Mapping[str, Any], tables: Iterable[pa.Table], pictures: Pictures) -> None:
    """Write the Parquet table, one method's part at a time, the pictures, the report and, last of all, the JSON."""
    by_site: list[Row] = []
    with whole_file(out / PER_IMAGE) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            by_site += _by_site(table)
    names = _write_pictures(out / FIGURES, pictures)
    write_evaluation_report(out / REPORT, evaluation, by_site, names)
    write_json(out / EVALUATION, evaluation)


def images_table(rows: Sequence[Row], figures: Figures) -> pa.Table:
    """A row per image of one method; a measure of pairs is the mean over the pairs that the image is part of."""
    found = {name: _by_unit(figure) for name, figure in figures.items()}
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in (*FACTS, "method")}
    columns |= {name: [found.get(name, {}).get(row["image_id"]) for row in rows] for name in MEASURES}
    return pa.table(columns, schema=SCHEMA)


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


def _write_pictures(folder: Path, pictures: Pictures) -> dict[str, dict[str, Path]]:
    """PNG files by sequence and kind."""
    made: dict[str, dict[str, Path]] = {}
    for sequence in sorted({sequence for sequence, _ in pictures.shown}):
        shown = {method: own for (name, method), own in pictures.shown.items() if name == sequence}
        drawn = _drawn(folder, sequence, pictures.cases.get(sequence, ()), shown)
        made[sequence] = {path.stem.removeprefix(f"{sequence}_"): path for path, is_drawn in drawn.items() if is_drawn}
    return made


def _drawn(folder: Path, sequence: str, cases: Sequence[Score], shown: Mapping[str, Shown]) -> dict[Path, bool]:
    """Every picture of a sequence, and whether there was something to draw."""
    kinds = ("before_after", "differences", "dissimilarity", "histograms", "map", "umap", "map_people")
    paths = {kind: folder / f"{sequence}_{kind}.png" for kind in kinds}
    title = f"{sequence}: images by their features"
    return {
        paths["before_after"]: _before_after(paths["before_after"], sequence, cases),
        paths["differences"]: _differences(paths["differences"], sequence, cases),
        paths["dissimilarity"]: _unlike(paths["dissimilarity"], sequence, cases),
        paths["histograms"]: _histograms(paths["histograms"], sequence, shown),
        paths["map"]: _map(paths["map"], f"{title} (t-SNE)", shown, "map"),
        paths["umap"]: _map(paths["umap"], f"{title} (UMAP)", shown, "umap"),
        paths["map_people"]: _people(paths["map_people"], f"{title} (t-SNE)", shown),
    }


def _histograms(path: Path, sequence: str, shown: Mapping[str, Shown]) -> bool:
    if not {RAW, OURS} <= shown.keys():
        return False
    before, after = (shown[name].quantiles for name in (RAW, OURS))
    draw.histograms(path, before, after, f"{sequence}: brain intensities by site")
    return True


def _before_after(path: Path, sequence: str, cases: Sequence[Score]) -> bool:
    if not cases:
        return False
    whole = set.intersection(*({*case.slices} for case in cases))
    methods = [
        RAW,
        BEST_KNOWN,
        *(name for name in ordered(whole) if name not in (RAW, BEST_KNOWN) and is_pictured(name)),
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
    chosen = [name for name in ordered(whole) if name != RAW and is_pictured(name)]
    if chosen:
        lines = {shown_name(name): [image for case in cases for image in case.maps[name]] for name in chosen}
        draw.before_after(path, lines, [site for case in cases for site in case.sites], f"{sequence}: unlike the scan")
    return bool(chosen)


def _map(path: Path, title: str, shown: Mapping[str, Shown], kind: str) -> bool:
    maps = {name: shown[name].maps[kind] for name in ordered(shown) if kind in shown[name].maps}
    if maps:
        panels = {shown_name(name): (own.places, own.sites) for name, own in maps.items()}
        draw.feature_map(path, panels, f"{title}, coloured by site")
    return bool(maps)


def _people(path: Path, title: str, shown: Mapping[str, Shown]) -> bool:
    """The map of those who were scanned several times, each in a colour."""
    panels = {}
    for name in ordered(shown):
        own = shown[name].maps.get("map")
        counts = Counter(() if own is None else own.subjects)
        people = sorted(who for who, count in counts.items() if count > 1)[:PEOPLE_SHOWN]
        if own is not None and len(people) > 1:
            rows = [i for i, who in enumerate(own.subjects) if who in people]
            panels[shown_name(name)] = (own.places[rows], [own.subjects[i] for i in rows])
    if panels:
        draw.feature_map(path, panels, f"{title}, coloured by person")
    return bool(panels)
