"""Defines the unified domain of each sequence, measured on a cohort or simulated, and its simulated examples.

Needs no Ray.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch

from mmh_ray.config import Config
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.imaging.intensity import MonotoneMap, mean_quantile_function, quantile_function, tissue_quantiles
from mmh_ray.provenance import hash_of, sha256_file
from mmh_ray.shards import PreparedStore
from mmh_ray.simulation.examples import example, random_head
from mmh_ray.simulation.label_maps import label_maps_in
from mmh_ray.simulation.phantom_people import canonical_quantiles, person_number, simulated_pair, unifying_map
from mmh_ray.simulation.protocols import SEQUENCES
from mmh_ray.simulation.scanner import canonical_image

Example = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scan, its truth in the unified domain, and mask, ``(X, Y, Z)`` each."""
VALIDATION_PEOPLE = 10**9
"""Numbers of simulated examples that training never reaches."""


@dataclass(frozen=True)
class UnifiedDomain:
    """The contrast that each sequence is brought to, from the histograms of a cohort's training volumes.

    Attributes
    ----------
    quantiles:
        Sequence to ``(257,)`` quantile function: the mean over sites of the sites' means, so that no site dominates.
    tissues:
        Sequence to ``(257,)`` tissue quantiles of the volumes matched to ``quantiles``, averaged in the same way.
    canonical:
        Sequence to ``(257,)`` mean quantile function of simulated canonical images, of sequences that can be simulated.
    """

    quantiles: dict[str, np.ndarray]
    tissues: dict[str, np.ndarray]
    canonical: dict[str, np.ndarray]
    cache_size: ClassVar[int] = 0
    """Examples that are cached because they are used again."""

    @classmethod
    def of(cls, store: PreparedStore, config: Config) -> UnifiedDomain:
        """Measure the domain on the volumes of split `train`; DataError names a sequence without any."""
        quantiles = {}
        tissues = {}
        for sequence in config.model.sequences:
            by_site: dict[str, list[dict[str, Any]]] = {}
            for entry in usable(store, "train"):
                if entry["sequence"] == sequence:
                    by_site.setdefault(entry["site"], []).append(entry)
            if not by_site:
                raise DataError(
                    f"no {sequence} volume in split train",
                    f"training volumes of every sequence of model.sequences={config.model.sequences}",
                    "Prepare scans of it, or leave it out of model.sequences.",
                )
            domain = _mean_over_sites(by_site, lambda entry: entry["quantiles"])
            quantiles[sequence] = domain
            tissues[sequence] = _mean_over_sites(by_site, functools.partial(_tissues_in, domain))
        simulated = {}
        if config.train.simulated_share:
            simulated = canonical_quantiles(config.model.sequences, config.grid, config.train.seed)
        return cls(quantiles, tissues, simulated)

    def as_tensor(self, sequences: tuple[str, ...]) -> torch.Tensor:
        """``(S, 2, 257)`` float32 in the model's order: quantile function and tissue quantiles."""
        return torch.tensor(np.stack([self.of_sequence(name) for name in sequences]), dtype=torch.float32)

    def of_sequence(self, name: str) -> np.ndarray:
        """``(2, 257)`` quantile function and tissue quantiles of a sequence."""
        return np.stack([self.quantiles[name], self.tissues[name]])

    def example(self, config: Config, sequence: str, ordinal: int) -> Example:
        """The ``ordinal``-th simulated example of a sequence; two consecutive ones show one person on two scanners."""
        upper = config.prepare.upper_percentile
        scan, truth, mask = simulated_pair(ordinal, sequence, config.grid, config.train.seed, upper)
        to_unified = unifying_map(self.canonical[sequence], self.quantiles[sequence])
        return scan, to_unified.apply_inside(truth, mask), mask

    def example_number(self, ordinal: int) -> int:
        """Number of the example that the ``ordinal``-th simulated group shows slices of."""
        return ordinal


DOMAIN_PEOPLE = 24
"""Simulated people over whom a simulated domain's histogram is averaged."""
VIEWS = 4
"""Groups made from one example of a simulated domain: each shows few slices, and making an example takes longer than
training on it."""
CACHED_EXAMPLES = 16
"""Examples that take turns until each has been used for ``VIEWS`` groups."""


@dataclass(frozen=True)
class ChosenDomain(UnifiedDomain):
    """A domain that is simulated instead of measured: the canonical contrast of :mod:`mmh_ray.simulation`.

    Attributes
    ----------
    label_maps:
        Paths of the label maps to make people from; the last fifth is for validation only. Empty: ICBM-152.
    """

    label_maps: tuple[str, ...] = ()
    cache_size: ClassVar[int] = CACHED_EXAMPLES

    @classmethod
    def of_simulation(cls, config: Config) -> ChosenDomain:
        """Make the domain from the settings alone.

        Raises
        ------
        DataError
            If the folder of label maps holds none.
        ConfigError
            If the model has a sequence that cannot be simulated.
        """
        unknown = [name for name in config.model.sequences if name not in SEQUENCES]
        if unknown:
            expected = f"some of {', '.join(SEQUENCES)} without PREPARED"
            raise ConfigError(f"model.sequences={config.model.sequences}", expected, "Leave the others out.")
        folder = config.simulation.label_maps
        label_maps = () if folder is None else label_maps_in(folder)
        heads = [random_head(label_maps, _DOMAIN_SEED + number, config.grid) for number in range(DOMAIN_PEOPLE)]
        quantiles = {}
        tissues = {}
        for sequence in config.model.sequences:
            head_quantiles = []
            head_tissues = []
            for head in heads:
                image = canonical_image(head, sequence)
                head_quantiles.append(quantile_function(image[head.brain]))
                head_tissues.append(tissue_quantiles(image, head.brain))
            quantiles[sequence] = mean_quantile_function(head_quantiles)
            tissues[sequence] = mean_quantile_function(head_tissues)
        return cls(quantiles, tissues, quantiles, label_maps)

    def example(self, config: Config, sequence: str, ordinal: int) -> Example:
        """See :meth:`UnifiedDomain.example`."""
        label_maps = self._label_maps_for(ordinal)
        person_seed = mixed_seed(config.train.seed, person_number(ordinal))
        head = random_head(label_maps, person_seed, config.grid)
        scan_seed = mixed_seed(config.train.seed, ordinal)
        simulated = example(head, sequence, scan_seed, config.grid, config.prepare.n4_iterations)
        return simulated.scan, simulated.truth, simulated.mask

    def _label_maps_for(self, ordinal: int) -> tuple[str, ...]:
        """The label maps of training or of validation."""
        count = len(self.label_maps)
        held_out = math.ceil(count / 5)
        first_held_out = count - held_out
        if ordinal < VALIDATION_PEOPLE:
            return self.label_maps[:first_held_out]
        return self.label_maps[first_held_out:]

    def example_number(self, ordinal: int) -> int:
        """See :meth:`UnifiedDomain.example_number`; examples of validation are used once."""
        if ordinal >= VALIDATION_PEOPLE:
            return ordinal
        turn, place = divmod(ordinal, VIEWS * CACHED_EXAMPLES)
        return turn * CACHED_EXAMPLES + place % CACHED_EXAMPLES


_DOMAIN_SEED = 3 * 10**9


def simulation_hash(domain: ChosenDomain) -> str:
    """Hash of the training data of a model without a cohort: the domain and the bytes of the label maps."""
    quantiles = {name: values.tolist() for name, values in domain.quantiles.items()}
    return hash_of([quantiles, [sha256_file(path) for path in domain.label_maps]])


def _mean_over_sites(by_site: dict[str, list[dict[str, Any]]], function: Callable[..., np.ndarray]) -> np.ndarray:
    """Mean over sites of each site's mean of a function of its index rows."""
    site_means = []
    for entries in by_site.values():
        values = map(function, entries)
        site_means.append(mean_quantile_function(values))
    return mean_quantile_function(site_means)


def _tissues_in(domain: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """Tissue quantiles of a volume after it is matched to the domain's quantile function."""
    match = MonotoneMap.between(entry["quantiles"], domain)
    return match.apply(entry["tissues"])


def usable(store: PreparedStore, split: str) -> list[dict[str, Any]]:
    """Index rows of a split that hold a volume."""
    entries = [entry for entry in store.index if entry["status"] == "ok" and entry["split"] == split]
    return cast(list[dict[str, Any]], entries)


def mixed_seed(seed: int, number: int) -> int:
    """A well-spread 62-bit seed from two numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 2)
