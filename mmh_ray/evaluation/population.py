"""Measures that only a cohort has: what probes, clusterings and regressions find in one method's images of a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mmh_ray.evaluation import clustering
from mmh_ray.evaluation.downstream import association, brain_age
from mmh_ray.evaluation.measuring import Bulk, Clock
from mmh_ray.evaluation.metrics import truth_error
from mmh_ray.evaluation.probes import ProbeResult, cnn_site_probe, site_probe
from mmh_ray.evaluation.scans import Row
from mmh_ray.evaluation.summary import Figure

LEAST_SUBJECTS = 3
"""Subjects a site must have for the probes, which hold some of them out."""
LEAST_AGES = 12
"""Subjects of known age below which no brain age is learned."""

_GRID = np.arange(-0.5, 2.06, 0.01)
"""Intensities at which distributions are compared where sites have no person in common; the brain's 1st percentile is 0, its 99th 1."""

Figures = dict[str, Figure]


@dataclass(frozen=True, eq=False)
class Population:
    """One method's images of a sequence, row for row.

    Attributes
    ----------
    rows:
        ``image_id``, ``subject``, ``site``, ``age``, ``sex``, ``gm_share``.
    features, raw:
        ``(n, F)`` of the method's images and of the raw scans.
    bulks:
        Everything else; empty for a method that works on features alone.
    raw_slices:
        Of the raw scans, for the frozen CNN; None: no CNN probes.
    """

    method: str
    rows: Sequence[Row]
    features: np.ndarray
    raw: np.ndarray
    bulks: Sequence[Bulk] = ()
    raw_slices: np.ndarray | None = None

    def column(self, name: str) -> tuple[Any, ...]:
        """One fact of every row."""
        return tuple(row[name] for row in self.rows)

    @property
    def traveling(self) -> bool:
        """Whether any subject was scanned at more than one site."""
        return len({(row["subject"], row["site"]) for row in self.rows}) > len({row["subject"] for row in self.rows})

    def figure(self, values: np.ndarray, **facts: Any) -> Figure:
        """A figure with a unit per row whose value is finite."""
        values = values if values.dtype == np.float32 else np.asarray(values, dtype=np.float64)
        known = np.isfinite(values if values.ndim == 1 else values.sum(axis=1))
        made = Figure(values, self.column("image_id"), self.column("subject"), **facts)
        return made if known.all() else made.only(np.array(made.units)[known].tolist())


def population_figures(population: Population, seed: int, clock: Clock) -> Figures:
    """Every measure of the cohort that can be had of these images, by name."""
    found: Figures = {}
    found |= _truth(population) | _pooled(population) | _associations(population)
    found |= _site_probes(population, seed, clock) | _clusters(population, seed, clock)
    return found | _ages(population, seed, clock)


def probes_make_sense(rows: Sequence[Row]) -> bool:
    """At least two sites, each with :data:`LEAST_SUBJECTS` subjects."""
    people = {site: {row["subject"] for row in rows if row["site"] == site} for site in {row["site"] for row in rows}}
    return len(people) > 1 and min(map(len, people.values())) >= LEAST_SUBJECTS


def _truth(population: Population) -> Figures:
    joints = [bulk.joint for bulk in population.bulks]
    known = [joint for joint in joints if joint is not None]
    if not known:
        return {}
    errors = iter(truth_error(known).per_image)
    own = np.array([np.nan if joint is None else next(errors) for joint in joints])
    voxels = np.array([np.nan if joint is None else joint.voxels.sum() for joint in joints])
    facts = {"reduce": _root_mean_square, "labels": population.column("site"), "shown": own}
    return {"truth_nrmse": population.figure(np.stack([own, voxels], axis=1), **facts)}


def _root_mean_square(values: np.ndarray, _labels: np.ndarray) -> float:
    """Of errors, weighted by voxels."""
    return float(np.sqrt(np.average(values[:, 0] ** 2, weights=values[:, 1])))


def _pooled(population: Population) -> Figures:
    """W1 between the pooled distributions of sites, for cohorts without travelers."""
    if population.traveling or not population.bulks:
        return {}
    parts = {"w1": [bulk.quantiles for bulk in population.bulks]}
    for tissue in ("CSF", "GM", "WM"):
        parts[f"w1_{tissue.lower()}"] = [bulk.tissues.get(tissue, np.empty(0)) for bulk in population.bulks]
    sites = population.column("site")
    curves = {name: np.stack([_distribution(own) for own in quantiles]) for name, quantiles in parts.items()}
    facts = {"reduce": w1_between_sites, "labels": sites}
    made = {name: population.figure(values, **facts) for name, values in curves.items()}
    return {name: figure for name, figure in made.items() if len(set(figure.labels or ())) > 1}


def _distribution(quantiles: np.ndarray) -> np.ndarray:
    """Distribution function at the grid's points, float32 to keep a large cohort small; NaN without any quantile."""
    if not quantiles.size:
        return np.full(_GRID.size, np.nan, np.float32)
    return (np.searchsorted(np.sort(quantiles), _GRID, side="right") / quantiles.size).astype(np.float32)


def w1_between_sites(distributions: np.ndarray, sites: np.ndarray) -> float:
    """Mean over pairs of sites of ``∫ |Fa(x) − Fb(x)| dx``, F a site's mean distribution function; NaN for one site."""
    means = [distributions[sites == site].mean(axis=0) for site in np.unique(sites)]
    step = float(_GRID[1] - _GRID[0])
    distances = [np.abs(a - b).sum() * step for a, b in combinations(means, 2)]
    return float(np.mean(distances)) if distances else float("nan")


def _site_probes(population: Population, seed: int, clock: Clock) -> Figures:
    if not probes_make_sense(population.rows):
        return {}
    sites, subjects, method = population.column("site"), population.column("subject"), population.method
    found: dict[str, ProbeResult | None] = {}

    def probe(name: str, function: Callable, images: np.ndarray, raw: np.ndarray) -> None:
        found[name] = clock.run(name, method, function, images, sites, subjects, seed)
        frozen = f"{name}_frozen"
        found[frozen] = clock.run(frozen, method, function, images, sites, subjects, seed, raw)

    probe("site_probe", site_probe, population.features, population.raw)
    slices = [bulk.slices for bulk in population.bulks]
    if population.raw_slices is not None and slices and all(own is not None for own in slices):
        probe("site_probe_cnn", cnn_site_probe, np.stack(slices), population.raw_slices)  # type: ignore[arg-type]
    return {
        name: population.figure(
            result.correct, strata=sites, guessed={"chance": result.chance, "chance_high": result.chance_high}
        )
        for name, result in found.items()
        if result is not None
    }


def _clusters(population: Population, seed: int, clock: Clock) -> Figures:
    """By site, and by person where persons have several images (scanned at several sites or times)."""
    sites, subjects = population.column("site"), population.column("subject")
    features, everybody = clustering.standardise(population.features), np.ones(len(sites), bool)
    counts = Counter(subjects)
    again = np.array([counts[name] > 1 for name in subjects])
    found = Figures()
    if len(set(sites)) > 1 and len(sites) >= 2 * len(set(sites)):
        found |= _gathering("site", population, features, sites, everybody, clustering.PERPLEXITY, seed, clock)
    if len({name for name, count in counts.items() if count > 1}) > 1:
        few = max(2, round(float(np.median([count for count in counts.values() if count > 1]))) - 1)
        found |= _gathering("subject", population, features, subjects, again, few, seed, clock)
    if population.traveling:
        nearest = clock.run(
            "subject_nearest", population.method, clustering.same_subject_nearest, features, subjects, sites
        )
        found |= {} if nearest is None else {"subject_nearest": population.figure(nearest)}
    return found


def _gathering(
    prefix: str,
    population: Population,
    features: np.ndarray,
    labels: Sequence[str],
    chosen: np.ndarray,
    perplexity: int,
    seed: int,
    clock: Clock,
) -> Figures:
    """How the chosen images gather by their labels; measures are named ``PREFIX_silhouette`` and so on."""
    own, names = features[chosen], np.asarray(labels)[chosen]
    functions: dict[str, Callable[[], np.ndarray]] = {
        "silhouette": lambda: clustering.silhouettes(own, names),
        "adjusted_rand": lambda: clustering.gathered(own, len(np.unique(names)), seed),
        "lisi": lambda: clustering.lisi(own, names, perplexity),
        "kbet": lambda: clustering.kbet(own, names),
    }
    found = Figures()
    for ending, function in functions.items():
        name = f"{prefix}_{ending}"
        made = clock.run(name, population.method, function)
        if made is not None:
            values = np.full(len(chosen), np.nan)
            values[chosen] = made
            facts = {"reduce": _adjusted_rand, "labels": tuple(labels)} if ending == "adjusted_rand" else {}
            found[name] = population.figure(values, **facts)
    return found


def _adjusted_rand(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Of clusters found once in the whole cohort, so that only the subjects vary from draw to draw."""
    return clustering.agreement(clusters, labels)


def _ages(population: Population, seed: int, clock: Clock) -> Figures:
    ages = _numbers(population.column("age"))
    sites, subjects = population.column("site"), population.column("subject")
    if len({subject for subject, age in zip(subjects, ages, strict=True) if np.isfinite(age)}) < LEAST_AGES:
        return {}
    found, method = Figures(), population.method
    for name, groups in {"age_mae": None, "age_mae_across_sites": sites}.items():
        if groups is None or len(set(groups)) > 1:
            result = clock.run(name, method, brain_age, population.features, ages, subjects, groups, seed)
            if result is not None:
                found[name] = population.figure(result.errors, guessed={"chance": result.baseline})
    return found


def _associations(population: Population) -> Figures:
    """Grey matter's share of the brain with age and sex: what harmonizing must not take away."""
    if not population.bulks:
        return {}
    grey, sites = _numbers(population.column("gm_share")), population.column("site")
    sexes = np.array([{"M": 0.0, "F": 1.0}.get(sex, np.nan) for sex in population.column("sex")])
    found = Figures()
    for name, other in {"age_association": _numbers(population.column("age")), "sex_association": sexes}.items():
        figure = population.figure(np.stack([grey, other], axis=1), reduce=_association, labels=sites)
        if len(set(figure.subjects)) >= LEAST_AGES and np.ptp(figure.values[:, 1]) > 0:
            found[name] = figure
    return found


def _association(values: np.ndarray, sites: np.ndarray) -> float:
    return association(values[:, 0], values[:, 1].tolist(), sites.tolist())


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
