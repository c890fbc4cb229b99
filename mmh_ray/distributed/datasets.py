"""Makes the training batches on Ray Data: a shuffled, deterministic stream of tri-planar slice groups from the shards.

Each group has a number in one global order. Step ``s`` trains on the groups ``s V`` to ``(s + 1) V - 1``, divided among
the workers. So the number of workers does not change which groups a step sees, a restart continues with the next
number, and no volume is dropped. In each pass over the cohort every training volume appears exactly once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from mmh_ray.config import Config
from mmh_ray.distributed.domains import VALIDATION_PEOPLE, Example, UnifiedDomain, mixed_seed, usable
from mmh_ray.errors import DataError
from mmh_ray.imaging.intensity import MonotoneMap
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.global_harmonizer import SlabBatch
from mmh_ray.models.slab_groups import Conditioner, slab_group, stack_groups
from mmh_ray.shards import PreparedStore

GROUPS_PER_BLOCK = 8
GROUPS_PER_EXECUTION = 32768
"""Groups of one Ray Data execution and worker: hours of training, but a plan that fits into the driver's memory."""


class GroupMaker:
    """Makes slice groups by their numbers; Ray Data calls it on blocks of numbers."""

    def __init__(self, store_uri: str | None, config: Config, domain: UnifiedDomain, split: str = "train") -> None:
        self.config = config
        self.domain = domain
        self.cached_examples: dict[int, Example] = {}
        sequences = config.model.sequences
        self.simulable = [name for name in sequences if name in domain.canonical]
        self.share = config.train.simulated_share if self.simulable else 0.0
        read_sequences = list(sequences)
        if self.share == 1:  # only sequences that cannot be simulated are read
            read_sequences = [name for name in sequences if name not in self.simulable]
            self.share = len(self.simulable) / len(sequences)

        self.store: PreparedStore | None = None
        self.entries: list[dict[str, Any]] = []
        if store_uri is not None:
            self.store = PreparedStore(store_uri)
            self.entries = [entry for entry in usable(self.store, split) if entry["sequence"] in read_sequences]

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stack the groups with the numbers in ``block["id"]``: each array gains a leading axis."""
        groups = [self.group(int(number)) for number in block["id"]]
        return stack_groups(groups)

    def group(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of :func:`mmh_ray.models.slab_groups.slab_group` for one number."""
        train = self.config.train
        sequence, target, styled, mask = self.pair(number)
        simulated, ordinal = self.source(number)
        seed = mixed_seed(train.seed, number)
        twin = mixed_seed(train.seed, ordinal // 2) if simulated else seed
        conditioner = Conditioner(styled, mask, self.domain.of_sequence(sequence), self.config.model)
        return slab_group(
            images={"image": target},
            conditioner=conditioner,
            mask=mask,
            sequence=self.config.model.sequences.index(sequence),
            slabs_per_plane=train.slabs_per_plane,
            seed=seed,
            twin=twin,
        )

    def pair(self, number: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Sequence of a group, and the target, styled copy and mask, ``(X, Y, Z)`` each, that it shows slices of."""
        simulated, ordinal = self.source(number)
        return self._simulated(ordinal) if simulated else self._volume(ordinal, number)

    def source(self, number: int) -> tuple[bool, int]:
        """Whether a group is simulated, and its ordinal among the simulated or real ones, which are evenly mixed."""
        if not self.entries:
            return True, number
        before = int(number * self.share)
        after = int((number + 1) * self.share)
        if after > before:
            return True, before
        return False, number - before

    def entry(self, ordinal: int) -> dict[str, Any]:
        """Index row of the ``ordinal``-th real group; every pass over the cohort is shuffled again."""
        count = len(self.entries)
        cohort_pass, place = divmod(ordinal, count)
        order = _shuffle(self.config.train.seed, cohort_pass, count)
        return self.entries[order[place]]

    def _volume(self, ordinal: int, number: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        assert self.store is not None
        config = self.config
        entry = self.entry(ordinal)
        sequence = entry["sequence"]
        image, mask = self.store.read(entry)
        teacher = MonotoneMap.between(entry["quantiles"], self.domain.quantiles[sequence])
        target = teacher.apply_inside(image, mask)
        generator = torch.Generator().manual_seed(mixed_seed(config.train.seed, number))
        image_tensor = torch.from_numpy(image)
        mask_tensor = torch.from_numpy(mask)
        styled = restyle(image_tensor, mask_tensor, config.grid.spacing_mm, config.restyle, generator)
        return sequence, target, styled.numpy(), mask

    def _simulated(self, ordinal: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        number = self.domain.example_number(ordinal)
        turn = number // 2 + number // 16  # the same for two consecutive examples: one person on two scanners
        sequence = self.simulable[turn % len(self.simulable)]
        example = self.cached_examples.get(number) or self.domain.example(self.config, sequence, number)
        self.cached_examples[number] = example
        while len(self.cached_examples) > self.domain.cache_size:
            self.cached_examples.pop(next(iter(self.cached_examples)))
        scan, truth, mask = example
        return sequence, truth, scan, mask


class _Loader(GroupMaker):
    """A group maker in its own process, next to the trainer."""

    def __init__(self, *arguments: Any) -> None:
        torch.set_num_threads(1)
        super().__init__(*arguments)


def training_stream(
    store_uri: str | None, config: Config, domain: UnifiedDomain, first_step: int, rank: int, world: int, loaders: int
) -> Iterator[SlabBatch]:
    """Yield this worker's batches in order, from ``first_step`` to ``config.train.steps``."""
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
    """Yield batches of ``share`` groups each, in the order of their numbers."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"id": number} for number in numbers.tolist()]
    blocks = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / GROUPS_PER_BLOCK))
    # The loaders reserve nothing, because their worker has reserved CPUs for them, too. If they were placed on their
    # own, they might find no room after a node was lost, and the workers, which hold the CPUs, would wait forever.
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
    """Fixed groups from the split `val` and from unseen simulated people, mixed as in training.

    The mixture matters: on teacher targets alone, a network that changes nothing would validate best.
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


@functools.lru_cache(maxsize=4)
def _shuffle(seed: int, cohort_pass: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, cohort_pass, 5]).permutation(length)
