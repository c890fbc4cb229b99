"""Tri-planar slice batches on Ray Data: an endless, shuffled, deterministic stream of slice groups from the shards.

A group is named by its number in the global order. Step ``s`` trains on groups ``s V`` to ``(s + 1) V - 1``, shared out among the
workers; so one worker and many see the same groups in the same step, a restart goes on with the next number, and
no volume is dropped. Within each pass over the cohort every training volume appears exactly once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from mmh_ray.config import Config
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.imaging.intensity import MonotoneMap, mean_quantile_function, quantile_function, tissue_quantiles
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.global_harmonizer import SlabBatch
from mmh_ray.models.slab_groups import training_group
from mmh_ray.provenance import hash_of, sha256_file
from mmh_ray.shards import PreparedStore
from mmh_ray.simulation.examples import example, random_head
from mmh_ray.simulation.label_maps import label_maps_in
from mmh_ray.simulation.phantom_people import (
    canonical_quantiles,
    person_number,
    simulated_pair,
    unifying_map,
)
from mmh_ray.simulation.protocols import SEQUENCES
from mmh_ray.simulation.scanner import canonical_image

Example = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scan, truth in the domain and mask, ``(X, Y, Z)`` each."""
VALIDATION_PEOPLE = 10**9
"""Numbers of simulated examples that training never reaches."""
GROUPS_PER_BLOCK = 8
GROUPS_PER_EXECUTION = 32768
"""Groups of one Ray Data execution and worker: hours of training, yet a plan that the driver can hold."""


@dataclass(frozen=True)
class UnifiedDomain:
    """Where each sequence is to go, from the training volumes' histograms alone.

    Attributes
    ----------
    quantiles:
        Sequence to ``(257,)`` quantile function: the mean over sites of each site's mean, so that no site owns the domain.
    tissues:
        Sequence to ``(257,)`` tissue quantiles, the same mean, of volumes matched to ``quantiles``.
    canonical:
        Sequence to ``(257,)`` mean quantile function of the simulated canonical images, for sequences that can be simulated.
    """

    quantiles: dict[str, np.ndarray]
    tissues: dict[str, np.ndarray]
    canonical: dict[str, np.ndarray]
    examples_at_hand: ClassVar[int] = 0
    """Examples that are kept because they are viewed again."""

    @classmethod
    def of(cls, store: PreparedStore, config: Config) -> UnifiedDomain:
        """From the volumes of split `train`; DataError names a sequence that has none."""
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
        """Scan, truth in the domain and mask, ``(X, Y, Z)`` each, of the ``ordinal``-th simulated example of a sequence.

        Two in a row are of one person, seen by two scanners.
        """
        upper = config.prepare.upper_percentile
        scan, truth, mask = simulated_pair(ordinal, sequence, config.grid, config.train.seed, upper)
        return scan, self._from_canonical(sequence).apply_inside(truth, mask), mask

    def example_number(self, ordinal: int) -> int:
        """Which example the ``ordinal``-th simulated group shows slices of."""
        return ordinal

    def _from_canonical(self, name: str) -> MonotoneMap:
        """From canonical to unified intensity of a sequence that can be simulated."""
        return unifying_map(self.canonical[name], self.quantiles[name])


DOMAIN_PEOPLE = 24
"""Simulated people whose mean histogram is that of a domain by choice."""
VIEWS = 4
"""Groups made of one example of a domain by choice: a group shows few of its slices, and making it takes longer than training on it."""
EXAMPLES_AT_HAND = 16
"""Examples that take turns until all were viewed so often."""


@dataclass(frozen=True)
class ChosenDomain(UnifiedDomain):
    """A domain by choice, not by average: the canonical look of :mod:`mmh_ray.simulation`, with no cohort at all.

    Attributes
    ----------
    label_maps:
        Paths of label maps to make people of; the last fifth serves validation alone. Empty: ICBM-152.
    """

    label_maps: tuple[str, ...] = ()
    examples_at_hand: ClassVar[int] = EXAMPLES_AT_HAND

    @classmethod
    def of_simulation(cls, config: Config) -> ChosenDomain:
        """From the settings alone.

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
        person_seed = _mix(config.train.seed, person_number(ordinal))
        head = random_head(label_maps, person_seed, config.grid)
        scan_seed = _mix(config.train.seed, ordinal)
        made = example(head, sequence, scan_seed, config.grid, config.prepare.n4_iterations)
        return made.scan, made.truth, made.mask

    def _label_maps_for(self, ordinal: int) -> tuple[str, ...]:
        """Those of training or of validation."""
        count = len(self.label_maps)
        held_out = math.ceil(count / 5)
        first_held_out = count - held_out
        if ordinal < VALIDATION_PEOPLE:
            return self.label_maps[:first_held_out]
        return self.label_maps[first_held_out:]

    def example_number(self, ordinal: int) -> int:
        """See :meth:`UnifiedDomain.example_number`; examples of validation are viewed once."""
        if ordinal >= VALIDATION_PEOPLE:
            return ordinal
        turn, place = divmod(ordinal, VIEWS * EXAMPLES_AT_HAND)
        return turn * EXAMPLES_AT_HAND + place % EXAMPLES_AT_HAND


_DOMAIN_SEED = 3 * 10**9


def simulation_hash(domain: ChosenDomain) -> str:
    """Hash of what a model learns from without a cohort: the domain and the bytes of the label maps."""
    quantiles = {name: values.tolist() for name, values in domain.quantiles.items()}
    return hash_of([quantiles, [sha256_file(path) for path in domain.label_maps]])


def _mean_over_sites(by_site: dict[str, list[dict[str, Any]]], function: Callable[..., np.ndarray]) -> np.ndarray:
    """Mean over sites of each site's mean of what the function gives for an index row."""
    site_means = []
    for entries in by_site.values():
        values = map(function, entries)
        site_means.append(mean_quantile_function(values))
    return mean_quantile_function(site_means)


def _tissues_in(domain: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """A volume's tissue quantiles, once it is matched to the domain's quantile function."""
    match = MonotoneMap.between(entry["quantiles"], domain)
    return match.apply(entry["tissues"])


class GroupMaker:
    """Makes the ``number``-th slice group; called by Ray Data on blocks of numbers, or by hand."""

    def __init__(self, store_uri: str | None, config: Config, domain: UnifiedDomain, split: str = "train") -> None:
        self.config = config
        self.domain = domain
        self.at_hand: dict[int, Example] = {}
        sequences = config.model.sequences
        self.simulable = [name for name in sequences if name in domain.canonical]
        self.share = config.train.simulated_share if self.simulable else 0.0
        read_sequences = list(sequences)
        if self.share == 1:  # the teacher is left with what cannot be simulated
            read_sequences = [name for name in sequences if name not in self.simulable]
            self.share = len(self.simulable) / len(sequences)

        self.store: PreparedStore | None = None
        self.entries: list[dict[str, Any]] = []
        if store_uri is not None:
            self.store = PreparedStore(store_uri)
            self.entries = [entry for entry in usable(self.store, split) if entry["sequence"] in read_sequences]

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Groups of the numbers in ``block["id"]``, stacked: each array gains a leading axis."""
        groups = [self.group(int(number)) for number in block["id"]]
        return {name: np.stack([group[name] for group in groups]) for name in groups[0]}

    def group(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of :func:`mmh_ray.models.slab_groups.training_group` for one number."""
        train = self.config.train
        sequence, target, styled, mask = self.pair(number)
        simulated, ordinal = self.source(number)
        seed = _mix(train.seed, number)
        twin = _mix(train.seed, ordinal // 2) if simulated else seed
        return training_group(
            target=target,
            styled=styled,
            mask=mask,
            domain=self.domain.of_sequence(sequence),
            sequence=self.config.model.sequences.index(sequence),
            slabs_per_plane=train.slabs_per_plane,
            model=self.config.model,
            seed=seed,
            twin=twin,
        )

    def pair(self, number: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Sequence, target, styled copy and mask, ``(X, Y, Z)`` each, of which a group shows slices."""
        simulated, ordinal = self.source(number)
        return self._simulated(ordinal) if simulated else self._volume(ordinal, number)

    def source(self, number: int) -> tuple[bool, int]:
        """Whether a group is simulated, and its ordinal among its kind; the kinds are evenly interleaved."""
        if not self.entries:
            return True, number
        before = int(number * self.share)
        after = int((number + 1) * self.share)
        if after > before:
            return True, before
        return False, number - before

    def entry(self, ordinal: int) -> dict[str, Any]:
        """Index row of the ``ordinal``-th group of the cohort: a new shuffle in every pass."""
        count = len(self.entries)
        turn, place = divmod(ordinal, count)
        order = _shuffle(self.config.train.seed, turn, count)
        return self.entries[order[place]]

    def _volume(self, ordinal: int, number: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        assert self.store is not None
        config = self.config
        entry = self.entry(ordinal)
        sequence = entry["sequence"]
        image, mask = self.store.read(entry)
        teacher = MonotoneMap.between(entry["quantiles"], self.domain.quantiles[sequence])
        target = teacher.apply_inside(image, mask)
        generator = torch.Generator().manual_seed(_mix(config.train.seed, number))
        image_tensor = torch.from_numpy(image)
        mask_tensor = torch.from_numpy(mask)
        styled = restyle(image_tensor, mask_tensor, config.grid.spacing_mm, config.restyle, generator)
        return sequence, target, styled.numpy(), mask

    def _simulated(self, ordinal: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        number = self.domain.example_number(ordinal)
        kept = self.domain.examples_at_hand
        turn = number // 2 + number // 16  # the same for two in a row: two scanners, one person
        sequence = self.simulable[turn % len(self.simulable)]
        made = self.at_hand.get(number) or self.domain.example(self.config, sequence, number)
        if kept:
            while number not in self.at_hand and len(self.at_hand) >= kept:
                self.at_hand.pop(next(iter(self.at_hand)))
            self.at_hand[number] = made
        scan, truth, mask = made
        return sequence, truth, scan, mask


class _Loader(GroupMaker):
    """In a process of its own, beside the trainer."""

    def __init__(self, *arguments: Any) -> None:
        torch.set_num_threads(1)
        super().__init__(*arguments)


def training_stream(
    store_uri: str | None, config: Config, domain: UnifiedDomain, first_step: int, rank: int, world: int, loaders: int
) -> Iterator[SlabBatch]:
    """This worker's batches from ``first_step`` on, in order, until ``config.train.steps``."""
    share = config.train.volumes_per_step // world
    first = first_step * share
    end = config.train.steps * share
    numbers_per_run = GROUPS_PER_EXECUTION // share * share
    for start in range(first, end, numbers_per_run):
        count = min(numbers_per_run, end - start)
        step, place = np.divmod(start + np.arange(count), share)
        numbers = step * share * world + rank * share + place
        yield from _execute(store_uri, config, domain, numbers, share, loaders)


def _execute(
    store_uri: str | None,
    config: Config,
    domain: UnifiedDomain,
    numbers: np.ndarray,
    share: int,
    loaders: int,
) -> Iterator[SlabBatch]:
    """Batches of ``share`` groups each, by their numbers, in order."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"id": number} for number in numbers.tolist()]
    blocks = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / GROUPS_PER_BLOCK))
    # The loaders reserve nothing, as the worker beside which they run has reserved their CPUs with its own. Loaders that were
    # placed by themselves could find no room after a node was lost, and the workers, which hold the CPUs, would wait for ever.
    this_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    groups = blocks.map_batches(
        _Loader,
        fn_constructor_args=(store_uri, config, domain),
        batch_size=GROUPS_PER_BLOCK,
        compute=ActorPoolStrategy(size=loaders),
        num_cpus=0,
        label_selector=this_node,
    )
    for batch in groups.iter_batches(batch_size=share, prefetch_batches=4, batch_format="numpy"):
        yield SlabBatch.of_groups(batch)


def validation_batches(store_uri: str | None, config: Config, domain: UnifiedDomain) -> list[SlabBatch]:
    """Fixed groups mixed as in training, from the split `val` and unseen simulated people, styled once and for all.

    The mixture matters: on teacher targets alone a network that changes nothing would validate best.
    """
    maker = GroupMaker(store_uri, config, domain, "val")
    if not maker.entries and not maker.simulable:
        raise DataError(
            "no volume in split val, and no sequence that can be simulated",
            "volumes to validate on",
            "Raise manifest.val_fraction, or train.simulated_share above 0.",
        )
    numbers = VALIDATION_PEOPLE + np.arange(config.train.validation_groups)
    return [SlabBatch.of_groups(maker({"id": pair})) for pair in np.split(numbers, range(2, len(numbers), 2))]


def usable(store: PreparedStore, split: str) -> list[dict[str, Any]]:
    """Index rows of a split that hold a volume."""
    entries = [entry for entry in store.index if entry["status"] == "ok" and entry["split"] == split]
    return cast(list[dict[str, Any]], entries)


def _mix(seed: int, number: int) -> int:
    """A well-spread 62-bit seed from two numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 2)


@functools.lru_cache(maxsize=4)
def _shuffle(seed: int, turn: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, turn, 5]).permutation(length)
