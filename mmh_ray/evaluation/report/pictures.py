"""Chooses and draws the pictures of an evaluation, for each sequence."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmh_ray.evaluation.metrics.method_metrics import PictureData, is_pictured
from mmh_ray.evaluation.metrics.registry import BEST_KNOWN, OURS, RAW, REFERENCE, TRUTH, ordered, shown_name
from mmh_ray.evaluation.metrics.scoring import CasePictures
from mmh_ray.evaluation.report import figures

PEOPLE_SHOWN = 8
"""Maximum number of persons on a map that is coloured by person, which is the number of colours."""


class Pictures(NamedTuple):
    """Data of all pictures: pictured cases by sequence, and method data by sequence and method."""

    cases: Mapping[str, Sequence[CasePictures]]
    methods: Mapping[tuple[str, str], PictureData]


def write_pictures(folder: Path, pictures: Pictures) -> dict[str, dict[str, Path]]:
    """Draw PNG files; return their paths by sequence and kind. Pictures without data are left out."""
    paths: dict[str, dict[str, Path]] = {}
    by_sequence: defaultdict[str, dict[str, PictureData]] = defaultdict(dict)
    for (sequence, method), data in pictures.methods.items():
        by_sequence[sequence][method] = data
    for sequence in sorted(by_sequence):
        cases = pictures.cases.get(sequence, ())
        paths[sequence] = _write_sequence(folder, sequence, cases, by_sequence[sequence])
    return paths


def _write_sequence(
    folder: Path, sequence: str, cases: Sequence[CasePictures], methods: Mapping[str, PictureData]
) -> dict[str, Path]:
    title = f"{sequence}: images by their features"
    drawings: dict[str, Callable[[Path], bool]] = {
        "before_after": lambda path: _before_after(path, sequence, cases),
        "differences": lambda path: _differences(path, sequence, cases),
        "dissimilarity": lambda path: _dissimilarity(path, sequence, cases),
        "histograms": lambda path: _histograms(path, sequence, methods),
        "map": lambda path: _map_of_sites(path, f"{title} (t-SNE)", methods, "map"),
        "umap": lambda path: _map_of_sites(path, f"{title} (UMAP)", methods, "umap"),
        "map_people": lambda path: _map_of_people(path, f"{title} (t-SNE)", methods),
    }
    paths = {kind: folder / f"{sequence}_{kind}.png" for kind in drawings}
    return {kind: path for kind, path in paths.items() if drawings[kind](path)}


def _before_after(path: Path, sequence: str, cases: Sequence[CasePictures]) -> bool:
    """Like each function below, returns whether there was something to draw."""
    if not cases:
        return False
    slices_of_cases = [case.slices for case in cases]
    complete = _in_every_case(slices_of_cases)
    named = (RAW, BEST_KNOWN, REFERENCE, TRUTH)
    others = [method for method in ordered(complete) if method not in named and is_pictured(method)]
    chosen = [method for method in (RAW, BEST_KNOWN, *others, REFERENCE, TRUTH) if method in complete]
    who = "one person at every site" if len(cases) == 1 else "one person from each site"
    figures.before_after(path, _rows(slices_of_cases, chosen), _sites(cases), f"{sequence}: {who}")
    return True


def _differences(path: Path, sequence: str, cases: Sequence[CasePictures]) -> bool:
    if len(cases) != 1:
        return False
    (case,) = cases
    if RAW not in case.slices or OURS not in case.slices:
        return False
    figures.differences(path, case.slices[RAW], case.slices[OURS], case.sites, f"{sequence}: differences")
    return True


def _dissimilarity(path: Path, sequence: str, cases: Sequence[CasePictures]) -> bool:
    """Draw where the structure of a method's image differs from the scan's."""
    if not cases:
        return False
    maps_of_cases = [case.maps for case in cases]
    complete = _in_every_case(maps_of_cases)
    chosen = [method for method in ordered(complete) if method != RAW and is_pictured(method)]
    if chosen:
        title = f"{sequence}: structural differences to the scan"
        figures.before_after(path, _rows(maps_of_cases, chosen), _sites(cases), title)
    return bool(chosen)


def _histograms(path: Path, sequence: str, methods: Mapping[str, PictureData]) -> bool:
    if RAW not in methods or OURS not in methods:
        return False
    title = f"{sequence}: brain intensities by site"
    figures.histograms(path, methods[RAW].quantiles, methods[OURS].quantiles, title)
    return True


def _map_of_sites(path: Path, title: str, methods: Mapping[str, PictureData], kind: str) -> bool:
    panels = {}
    for method in ordered(methods):
        feature_map = methods[method].maps.get(kind)
        if feature_map is not None:
            panels[shown_name(method)] = (feature_map.points, feature_map.sites)
    if panels:
        figures.feature_map(path, panels, f"{title}, coloured by site")
    return bool(panels)


def _map_of_people(path: Path, title: str, methods: Mapping[str, PictureData]) -> bool:
    """Draw the map of persons with several scans, one colour each."""
    panels = {}
    for method in ordered(methods):
        feature_map = methods[method].maps.get("map")
        if feature_map is None:
            continue
        images_of = Counter(feature_map.subjects)
        people = sorted(subject for subject, count in images_of.items() if count > 1)[:PEOPLE_SHOWN]
        if len(people) < 2:
            continue
        rows = [row for row, subject in enumerate(feature_map.subjects) if subject in people]
        panels[shown_name(method)] = (feature_map.points[rows], [feature_map.subjects[row] for row in rows])
    if panels:
        figures.feature_map(path, panels, f"{title}, coloured by person")
    return bool(panels)


def _in_every_case(slices: Sequence[Mapping[str, list[np.ndarray]]]) -> set[str]:
    """Methods that every pictured case has slices of."""
    return set.intersection(*(set(of_case) for of_case in slices))


def _rows(slices: Sequence[Mapping[str, list[np.ndarray]]], methods: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """The slices of all cases, concatenated, by the method's display name."""
    rows = {}
    for method in methods:
        rows[shown_name(method)] = [image for of_case in slices for image in of_case[method]]
    return rows


def _sites(cases: Sequence[CasePictures]) -> list[str]:
    return [site for case in cases for site in case.sites]
