"""Measures that only a cohort has: what probes, clusterings and regressions find in one method's images of a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from mmh_ray.evaluation.inputs.scans import Row
from mmh_ray.evaluation.metrics.agreement import truth_error
from mmh_ray.evaluation.metrics.label_metrics import site_label, spread_between_sites
from mmh_ray.evaluation.metrics.per_image import Bulk, Clock
from mmh_ray.evaluation.metrics.registry import RAW
from mmh_ray.evaluation.probes import clustering
from mmh_ray.evaluation.probes.downstream import association, brain_age
from mmh_ray.evaluation.probes.site import ProbeResult, cnn_site_probe, pattern_site_probe, site_probe
from mmh_ray.evaluation.statistics.summary import Figure

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

    @property
    def styles(self) -> np.ndarray | None:
        """``(n, D)`` style vectors; None unless every image has one."""
        known = [bulk.style for bulk in self.bulks if bulk.style is not None]
        return np.stack(known) if known and len(known) == len(self.rows) else None

    def only(self, chosen: Sequence[int]) -> Population:
        """Rows and features of some images."""
        return replace(self, rows=[self.rows[i] for i in chosen], features=self.features[chosen], bulks=())

    def figure(self, values: np.ndarray, **facts: Any) -> Figure:
        """A figure with a unit per row whose value is finite."""
        values = values if values.dtype == np.float32 else np.asarray(values, dtype=np.float64)
        known = np.isfinite(values if values.ndim == 1 else values.sum(axis=1))
        made = Figure(values, self.column("image_id"), self.column("subject"), **facts)
        return made if known.all() else made.only(np.array(made.units)[known].tolist())


def population_figures(population: Population, seed: int, clock: Clock) -> Figures:
    """Every measure of the cohort that can be had of these images, by name."""
    found: Figures = {}
    found |= _truth(population) | _pooled(population) | _associations(population) | _label_spread(population)
    found |= _site_probes(population, seed, clock) | _clusters(population, seed, clock)
    found |= _unet(population, seed, clock)
    return found | _people(population, seed, clock) | _ages(population, seed, clock)


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


def _label_spread(population: Population) -> Figures:
    """How far the tissues that others drew lie apart between sites; of labelled images alone."""
    known = [own.medians for own in population.bulks]
    if all(own is None for own in known):
        return {}
    labels = tuple(
        "" if own is None else site_label(own.table, site)
        for own, site in zip(known, population.column("site"), strict=True)
    )
    nothing = (np.nan, np.nan)
    parts = {
        "label_spread_gm": [nothing if own is None else (own.gm, own.reach) for own in known],
        "label_spread_wm": [nothing if own is None else (own.wm, own.reach) for own in known],
    }
    facts = {"reduce": spread_between_sites, "labels": labels}
    made = {name: population.figure(np.array(values, dtype=np.float64), **facts) for name, values in parts.items()}
    return {name: figure for name, figure in made.items() if figure.units}


def _site_probes(population: Population, seed: int, clock: Clock) -> Figures:
    if not probes_make_sense(population.rows):
        return {}
    sites, subjects, method = population.column("site"), population.column("subject"), population.method
    found: dict[str, ProbeResult | None] = {}

    def probe(name: str, function: Callable, images: np.ndarray, raw: np.ndarray) -> None:
        found[name] = clock.run(name, method, function, images, sites, subjects, seed)
        frozen = f"{name}_frozen"
        if method == RAW:  # it was trained on raw images
            found[frozen] = found[name]
        else:
            found[frozen] = clock.run(frozen, method, function, images, sites, subjects, seed, raw)

    probe("site_probe", site_probe, population.features, population.raw)
    slices = [bulk.slices for bulk in population.bulks]
    if population.raw_slices is not None and slices and all(own is not None for own in slices):
        probe("site_probe_cnn", cnn_site_probe, np.stack(slices), population.raw_slices)  # type: ignore[arg-type]
    details = [bulk.detail for bulk in population.bulks]
    if details and len({detail.grid for detail in details}) == 1:
        images = np.stack([detail.values for detail in details])
        found["site_probe_pattern"] = clock.run(
            "site_probe_pattern", method, pattern_site_probe, images, sites, subjects
        )
    elif details:
        clock.notes["grids of several shapes: no site_probe_pattern"].append(method)
    if (styles := population.styles) is not None:
        found["site_probe_style"] = clock.run("site_probe_style", method, site_probe, styles, sites, subjects, seed)
    for name, result in found.items():
        _tell(population, name, result, clock)
    return {
        name: population.figure(
            result.correct, strata=sites, guessed={"chance": result.chance, "chance_high": result.chance_high}
        )
        for name, result in found.items()
        if result is not None
    }


def _tell(population: Population, name: str, result: ProbeResult | None, clock: Clock) -> None:
    """How a probe's training ended goes into the evaluation, and a sentence where it was not done."""
    if result is None or not result.trainings:
        return
    whose = f"{population.rows[0].get('sequence')} {population.method}"
    epochs, losses, accuracies, converged = zip(*result.trainings, strict=True)
    facts = {"epochs": max(epochs), "loss": max(losses), "train_accuracy": min(accuracies), "converged": all(converged)}
    clock.trainings[f"{whose} {name}"] = facts
    if not all(converged):
        clock.notes[f"{name} had not learnt its training images when it ended: it may miss a mark"].append(whose)


def _unet(population: Population, seed: int, clock: Clock) -> Figures:
    """How a network that learned tissues at one site does at the others."""
    images = [bulk.tissue_slices for bulk in population.bulks if bulk.tissue_slices is not None]
    if not images or len(images) < len(population.rows) or not probes_make_sense(population.rows):
        return {}
    from mmh_ray.evaluation.probes.segmentation_network import unet_transfer

    labels = population.column("site"), population.column("subject")
    found = clock.run("unet", population.method, unet_transfer, images, *labels, seed)
    if found is None:
        return {}
    return {f"unet_{name}": population.figure(found[:, i]) for i, name in enumerate(("dice", "volume_error"))}


def _clusters(population: Population, seed: int, clock: Clock) -> Figures:
    """How images gather by site: features, and style vectors."""
    sites, method = population.column("site"), population.method
    if len(set(sites)) < 2 or len(sites) < 2 * len(set(sites)):
        return {}
    standard = replace(population, features=clustering.standardise(population.features))
    found = _gathering("site", standard, sites, clustering.PERPLEXITY, seed, clock)
    if (styles := population.styles) is not None:
        apart = clock.run(
            "site_silhouette_style", method, clustering.silhouettes, clustering.standardise(styles), sites
        )
        found["site_silhouette_style"] = population.figure(apart)
    return found


def _people(population: Population, seed: int, clock: Clock) -> Figures:
    """How images gather by person, by what lies in the part of the grid that is brain in everybody."""
    everybody = _in_common(population)
    counts = Counter(everybody.column("subject"))
    several = [count for count in counts.values() if count > 1]
    if len(several) < 2:
        return {}
    again = everybody.only([i for i, name in enumerate(everybody.column("subject")) if counts[name] > 1])
    found = _gathering(
        "subject", again, again.column("subject"), max(2, round(float(np.median(several))) - 1), seed, clock
    )
    if everybody.traveling:
        labels = everybody.column("subject"), everybody.column("site")
        nearest = clock.run(
            "subject_nearest", population.method, clustering.same_subject_nearest, everybody.features, *labels
        )
        found["subject_nearest"] = everybody.figure(nearest)
    return found


def _in_common(population: Population) -> Population:
    """Images that have features of the common part, with those, standardised; none of a method on features alone."""
    known = [i for i, bulk in enumerate(population.bulks) if bulk.person is not None]
    if not known:
        return replace(population, rows=(), bulks=())
    persons = np.array([list((population.bulks[i].person or {}).values()) for i in known])
    own = replace(population, rows=[population.rows[i] for i in known], bulks=())
    return replace(own, features=clustering.standardise(persons))


def _gathering(
    prefix: str, population: Population, labels: tuple[str, ...], perplexity: int, seed: int, clock: Clock
) -> Figures:
    """How images gather by their labels, features being standardised; measures are named ``PREFIX_silhouette`` and so on."""
    own, names = population.features, np.asarray(labels)
    functions: dict[str, Callable[[], np.ndarray]] = {
        "silhouette": lambda: clustering.silhouettes(own, names),
        "adjusted_rand": lambda: clustering.gathered(own, len(np.unique(names)), seed),
        "lisi": lambda: clustering.lisi(own, names, perplexity),
        "kbet": lambda: clustering.kbet(own, names),
    }
    found = Figures()
    for ending, function in functions.items():
        name = f"{prefix}_{ending}"
        values = clock.run(name, population.method, function)
        if values is not None:
            facts = {"reduce": _adjusted_rand, "labels": labels} if ending == "adjusted_rand" else {}
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
