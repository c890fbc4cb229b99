"""Selects the images that the adapters of target sites are trained and validated on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmh_ray.config import Config
from mmh_ray.distributed.domains import usable
from mmh_ray.errors import DataError
from mmh_ray.imaging.preprocess import bias_step
from mmh_ray.models.bundle import Bundle
from mmh_ray.shards import PreparedStore

log = logging.getLogger(__name__)

LEAST_IMAGES = 3
"""Images of the target below which no adapter is trained."""
LEAST_SOURCES = 2
"""Images of other sites below which no adapter is trained."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TargetTask:
    """Index rows for one adapter: images of the site and of other sites (sources), for training and for validation."""

    site: str
    sequence: str
    training: tuple[Row, ...]
    validation: tuple[Row, ...]
    sources: tuple[Row, ...]
    validation_sources: tuple[Row, ...]

    def as_facts(self) -> dict[str, list[str]]:
        """Image ids, for the target bundle."""
        return {
            "images": _ids(self.training),
            "validation_images": _ids(self.validation),
            "sources": _ids(self.sources),
            "validation_sources": _ids(self.validation_sources),
        }


def _ids(rows: Sequence[Row]) -> list[str]:
    return [row["image_id"] for row in rows]


def plan_targets(store: PreparedStore, bundle: Bundle, config: Config) -> tuple[list[TargetTask], dict[str, Exception]]:
    """Tasks of every site that can be trained, and the errors of the others."""
    tasks: list[TargetTask] = []
    failed: dict[str, Exception] = {}
    for site in config.target.site:
        try:
            tasks += plan_site(store, site, bundle, config)
        except DataError as error:
            log.error("target %s: %s", site, error)
            failed[site] = error
    return tasks, failed


def plan_site(store: PreparedStore, site: str, bundle: Bundle, config: Config) -> list[TargetTask]:
    """A task for each sequence with enough images; the others are logged with the reason.

    About a fifth of the site's images and a quarter of the sources are for validation.

    Raises
    ------
    DataError
        If the store was not prepared like the model's training data, lacks the site, or has too few images of every
        sequence.
    """
    entries = usable(store, "train") + usable(store, "val")
    _check_preparation(store, entries, bundle.config)
    sites = sorted({entry["site"] for entry in entries})
    if site not in sites:
        raise DataError(f"target.site={site}", f"a site of the store: {', '.join(sites)}", "Check the name.")
    tasks: list[TargetTask] = []
    too_few: list[str] = []
    for sequence in bundle.config.model.sequences:
        of_sequence = [entry for entry in entries if entry["sequence"] == sequence]
        of_site = [entry for entry in of_sequence if entry["site"] == site]
        of_others = [entry for entry in of_sequence if entry["site"] != site]
        of_site.sort(key=lambda entry: entry["image_id"])
        images = _draw(of_site, config.target.images, config.target.seed)
        sources = _spread(of_others, config.target.sources)
        if len(images) < LEAST_IMAGES or len(sources) < LEAST_SOURCES:
            too_few.append(f"{len(of_site)} {sequence} images, and {len(sources)} of other sites")
            continue
        training, validation = _split(images, max(1, len(images) // 5))
        training_sources, validation_sources = _split(sources, max(1, len(sources) // 4))
        task = TargetTask(
            site=site,
            sequence=sequence,
            training=training,
            validation=validation,
            sources=training_sources,
            validation_sources=validation_sources,
        )
        tasks.append(task)
    needed = f"{LEAST_IMAGES} images of a sequence outside split test, and {LEAST_SOURCES} of other sites"
    if not tasks:
        raise DataError(f"site {site} with {'; '.join(too_few)}", needed, "Prepare more images.")
    for reason in too_few:
        log.warning("target %s has %s; no adapter is trained below %s", site, reason, needed)
    return tasks


def _check_preparation(store: PreparedStore, entries: Sequence[Row], config: Config) -> None:
    """Raise DataError if a volume is not on the model's grid, or its bias field was corrected in another way."""
    spacing = config.grid.spacing_mm
    shape = tuple(config.grid.shape)
    bias = bias_step(config.prepare)
    for entry in entries:
        entry_shape = tuple(entry["shape"])
        entry_edges = np.linalg.norm(entry["affine"][:3, :3], axis=0)
        entry_steps = entry["steps"] or ()
        entry_bias = next((step for step in entry_steps if step.startswith("bias field:")), bias)
        is_on_grid = entry_shape == shape and np.allclose(entry_edges, spacing, rtol=1e-3)
        if is_on_grid and entry_bias == bias:
            continue
        edges = " x ".join(f"{edge:.3g}" for edge in entry_edges)
        raise DataError(
            f"{store.uri}: volumes of shape {entry_shape}, {edges} mm, {entry_bias}",
            f"the model's grid {shape}, {spacing:g} mm, {bias}",
            "Prepare with the model's grid and prepare settings.",
        )


def _split(rows: Sequence[Row], held_out: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows for training, and about ``held_out`` of the last ones for validation.

    Subjects are not divided, unless there is only one.
    """
    counts = Counter(row["subject"] for row in rows)
    if len(counts) == 1:
        return tuple(rows[:-held_out]), tuple(rows[-held_out:])
    validation_subjects = set()
    left = held_out
    for subject, count in reversed(counts.items()):
        if count <= left:
            validation_subjects.add(subject)
            left -= count
    if not validation_subjects:
        validation_subjects = {min(counts, key=counts.__getitem__)}
    training = tuple(row for row in rows if row["subject"] not in validation_subjects)
    validation = tuple(row for row in rows if row["subject"] in validation_subjects)
    return training, validation


def _draw(images: Sequence[Row], count: int, seed: int) -> Sequence[Row]:
    """``count`` random images in their order; all, if ``count`` is 0 or there are not more."""
    if not 0 < count < len(images):
        return images
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return [images[index] for index in sorted(chosen)]


def _spread(entries: Sequence[Row], count: int) -> list[Row]:
    """At most ``count`` rows, taken from the sites in turn."""
    seen_of_site: Counter[str] = Counter()
    in_turn: list[tuple[int, str, Row]] = []
    for entry in sorted(entries, key=lambda entry: entry["image_id"]):
        site = entry["site"]
        in_turn.append((seen_of_site[site], site, entry))
        seen_of_site[site] += 1
    in_turn.sort(key=lambda place: place[:2])
    return [entry for _, _, entry in in_turn[:count]]
