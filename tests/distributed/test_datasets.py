"""The training stream: every volume is used once per pass.

The groups do not depend on the number of workers and are the same after a restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmh_ray.config import Config, GridConfig, ModelConfig, TrainConfig
from mmh_ray.distributed import datasets
from mmh_ray.distributed.datasets import GroupMaker, training_stream, validation_batches
from mmh_ray.distributed.domains import UnifiedDomain, usable
from mmh_ray.errors import DataError
from mmh_ray.imaging.intensity import quantile_function, tissue_quantiles
from mmh_ray.models.global_harmonizer import SlabBatch
from mmh_ray.shards import PreparedStore, shard_entries, write_index, write_shard

SHAPE = (16, 24, 16)
CONFIG = Config(
    grid=GridConfig(12.0, SHAPE),  # coarse, so that simulated people are quick
    model=ModelConfig(channels=(8, 16), slab=3, distances=(1, 2), patch=2),
    train=TrainConfig(steps=6, volumes_per_step=2, slabs_per_plane=1, validation_groups=4, simulated_share=0.5),
)
SITES = {"alder": 3, "birch": 1}
"""Training volumes per sequence."""


def volume(number: int, site: str, sequence: str, split: str) -> dict[str, Any]:
    """A row for the shard: random intensities in an ellipsoid."""
    rng = np.random.default_rng(number)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    mask = sum(axis**2 for axis in axes) < 0.7
    image = (rng.uniform(0.1, 1, SHAPE) ** rng.uniform(0.5, 2) * mask).astype(np.float32)
    return {
        "image_id": f"sub-{number:02d}_{sequence}",
        "subject": f"{number:02d}",
        "session": None,
        "site": site,
        "sequence": sequence,
        "split": split,
        "image": image,
        "mask": mask,
        "affine": np.eye(4),
        "low": 0.0,
        "high": 1.0,
        "quantiles": quantile_function(image[mask]),
        "tissues": tissue_quantiles(image, mask),
        "steps": [],
        "provenance": f"{number:064x}",
    }


def write_store(uri: str, sequences: tuple[str, ...] = ("T1w", "T2w"), val: int = 2) -> str:
    """Three volumes of alder and one of birch for training, some for validation, one that failed, per sequence."""
    rows = []
    for sequence in sequences:
        for site in [site for site, count in SITES.items() for _ in range(count)]:
            rows.append(volume(len(rows), site, sequence, "train"))
        rows += [volume(len(rows) + place, "alder", sequence, "val") for place in range(val)]
    shard = write_shard(uri, rows)
    failed = {key: rows[0][key] for key in ("subject", "site", "sequence", "split", "provenance")}
    failed |= {"image_id": "sub-99_T1w", "status": "failed", "reason": "damaged"}
    assert write_index(uri, [*shard_entries(uri, shard), failed])
    return uri


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight training volumes, four for validation."""
    return write_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def domain(store: str) -> UnifiedDomain:
    """The unified domain of the store."""
    return UnifiedDomain.of(PreparedStore(store), CONFIG)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """GroupMaker sets torch to one thread in its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def training(**changes: Any) -> Config:
    """The configuration with other training settings."""
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


# --- the unified domain ---


@pytest.mark.fast
def test_domain_is_the_mean_over_sites_not_over_volumes(store: str, domain: UnifiedDomain) -> None:
    for sequence in ("T1w", "T2w"):
        by_site = {
            site: [
                entry["quantiles"]
                for entry in PreparedStore(store).index
                if (entry["status"], entry["split"], entry["site"], entry["sequence"])
                == ("ok", "train", site, sequence)
            ]
            for site in SITES
        }
        assert {site: len(found) for site, found in by_site.items()} == SITES
        expected = (np.mean(by_site["alder"], axis=0) + by_site["birch"][0]) / 2
        np.testing.assert_allclose(domain.quantiles[sequence], expected, atol=1e-6)
        assert (np.diff(domain.quantiles[sequence]) >= 0).all()
    found = domain.as_tensor(("T2w", "T1w"))
    assert (found.shape, found.dtype) == ((2, 2, 257), torch.float32)
    np.testing.assert_allclose(found[0, 0], domain.quantiles["T2w"], rtol=1e-6)


@pytest.mark.fast
def test_canonical_domain_is_there_only_where_it_is_used(store: str, domain: UnifiedDomain) -> None:
    assert set(domain.canonical) == {"T1w", "T2w"}
    assert not UnifiedDomain.of(PreparedStore(store), training(simulated_share=0.0)).canonical


@pytest.mark.fast
def test_sequence_without_training_volumes_is_named(tmp_path: Path) -> None:
    uri = write_store(str(tmp_path), ("T1w",))
    with pytest.raises(DataError, match=r"no T2w volume in split train.*or leave it out of model\.sequences"):
        UnifiedDomain.of(PreparedStore(uri), CONFIG)


@pytest.mark.fast
def test_usable_leaves_out_other_splits_and_failures(store: str) -> None:
    assert Counter(entry["status"] for entry in usable(PreparedStore(store), "train")) == {"ok": 8}
    assert len(usable(PreparedStore(store), "val")) == 4
    assert not usable(PreparedStore(store), "test")


# --- the order of groups ---


@pytest.mark.fast
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_every_pass_shows_every_training_volume_once_in_a_new_order(
    store: str, domain: UnifiedDomain, share: float
) -> None:
    maker = GroupMaker(store, training(simulated_share=share), domain)
    sources = [maker.source(number) for number in range(200)]
    ordinals = [ordinal for simulated, ordinal in sources if not simulated]
    assert ordinals == list(range(len(ordinals)))
    shown = [maker.entry(ordinal)["image_id"] for ordinal in ordinals]
    passes = [tuple(shown[start : start + 8]) for start in range(0, len(shown) - 7, 8)]
    expected = sorted(entry["image_id"] for entry in usable(maker.store, "train"))
    assert all(sorted(found) == expected for found in passes)
    assert len(set(passes)) > len(passes) - 2


@pytest.mark.fast
def test_order_follows_the_seed(store: str, domain: UnifiedDomain) -> None:
    first, again, other = (
        [GroupMaker(store, training(seed=seed), domain).entry(place)["image_id"] for place in range(24)]
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.fast
@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0])
def test_simulated_share_is_honoured_from_the_beginning(store: str, domain: UnifiedDomain, share: float) -> None:
    maker = GroupMaker(store, training(simulated_share=share), domain)
    simulated = [maker.source(number) for number in range(300)]
    counts = np.cumsum([kind for kind, _ in simulated])
    assert np.abs(counts - share * np.arange(1, 301)).max() <= 1
    ordinals = [ordinal for kind, ordinal in simulated if kind]
    assert ordinals == list(range(len(ordinals)))


@pytest.mark.fast
def test_simulated_groups_take_turns_among_the_sequences(store: str, domain: UnifiedDomain) -> None:
    maker = GroupMaker(store, training(simulated_share=1.0), domain)
    sequences = [int(maker.group(number)["sequence"][0]) for number in range(0, 64, 4)]
    assert Counter(sequences) == {0: 8, 1: 8}


@pytest.mark.fast
def test_two_in_a_row_are_one_person_seen_by_two_scanners(store: str, domain: UnifiedDomain) -> None:
    maker = GroupMaker(store, training(simulated_share=1.0), domain)
    for number in (0, 2, 14):
        one, other = maker.group(number), maker.group(number + 1)
        for name in ("image", "mask", "sequence", "plane", "position", "twin"):
            np.testing.assert_array_equal(one[name], other[name])
        assert not np.array_equal(one["condition"], other["condition"])
    assert maker.group(1)["twin"][0] != maker.group(2)["twin"][0]


@pytest.mark.fast
def test_nothing_is_simulated_of_sequences_that_cannot_be(tmp_path: Path) -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, sequences=("FLAIR",)))
    uri = write_store(str(tmp_path), ("FLAIR", "T1w"))
    maker = GroupMaker(uri, config, UnifiedDomain.of(PreparedStore(uri), config))
    assert not any(maker.source(number)[0] for number in range(20))
    assert {entry["sequence"] for entry in maker.entries} == {"FLAIR"}


# --- the groups ---


@pytest.mark.fast
def test_a_group_is_a_function_of_its_number(store: str, domain: UnifiedDomain) -> None:
    first, second = GroupMaker(store, CONFIG, domain), GroupMaker(store, CONFIG, domain)
    for number in (0, 1, 7):
        torch.manual_seed(number)
        expected = first.group(number)
        torch.manual_seed(number + 1)
        for name, array in second.group(number).items():
            np.testing.assert_array_equal(array, expected[name])
    keys = [key for number in range(12) for key in first.group(number)["key"].tolist()]
    assert len(set(keys)) == len(keys)


@pytest.mark.fast
def test_the_same_volume_has_another_style_in_the_next_pass_and_the_same_target(
    store: str, domain: UnifiedDomain
) -> None:
    maker = GroupMaker(store, training(simulated_share=0.0), domain)
    name = maker.entry(0)["image_id"]
    later = next(ordinal for ordinal in range(8, 16) if maker.entry(ordinal)["image_id"] == name)
    (_, target, styled, mask), (_, same_target, other_styled, _) = maker.pair(0), maker.pair(later)
    np.testing.assert_array_equal(target, same_target)
    assert np.abs(styled - other_styled)[mask].mean() > 0.01


@pytest.mark.fast
@pytest.mark.parametrize("simulated", [False, True])
def test_targets_have_the_unified_histogram_and_styles_stay_inside(
    store: str, domain: UnifiedDomain, simulated: bool
) -> None:
    maker = GroupMaker(store, training(simulated_share=float(simulated)), domain)
    for number in range(8):
        sequence, target, styled, mask = maker.pair(number)
        assert target.shape == styled.shape == mask.shape == SHAPE
        assert np.isfinite(target).all()
        assert np.isfinite(styled).all()
        assert not target[~mask].any()
        assert not styled[~mask].any()
        distance = np.abs(quantile_function(target[mask]) - domain.quantiles[sequence]).mean()
        assert distance < (0.15 if simulated else 0.01)  # a person's own anatomy shows in the histogram of the truth


@pytest.mark.fast
def test_a_block_stacks_its_groups(store: str, domain: UnifiedDomain) -> None:
    maker = GroupMaker(store, CONFIG, domain)
    block = maker({"id": np.array([3, 4])})
    for place, number in enumerate((3, 4)):
        for name, array in maker.group(number).items():
            np.testing.assert_array_equal(block[name][place], array)
    batch = SlabBatch.of_groups(block)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.image.shape == (6, 3, 16, 24)
    for name in ("image", "condition", "mask", "position"):
        assert getattr(batch, name).dtype == torch.float32
    for name in ("sequence", "plane", "key"):
        assert getattr(batch, name).dtype == torch.int64


@pytest.mark.fast
def test_tensors_of_a_batch_are_ones_own(store: str, domain: UnifiedDomain) -> None:
    block = GroupMaker(store, CONFIG, domain)({"id": np.array([0])})
    for array in block.values():
        array.setflags(write=False)
    before = block["key"].copy()
    SlabBatch.of_groups(block).key.add_(1)
    np.testing.assert_array_equal(block["key"], before)


# --- validation ---


@pytest.mark.fast
def test_validation_is_fixed_and_of_the_validation_split(
    store: str, domain: UnifiedDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    read = PreparedStore.read

    def record(self: PreparedStore, entry: dict[str, Any]) -> Any:
        shown.append(entry["split"] + entry["image_id"])
        return read(self, entry)

    monkeypatch.setattr(PreparedStore, "read", record)
    first, again = (validation_batches(store, CONFIG, domain) for _ in range(2))
    assert len(first) == 2
    assert len(set(shown)) == 2  # the other half of the groups is simulated
    assert all(name.startswith("val") for name in shown)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


@pytest.mark.fast
def test_without_validation_volumes_unseen_people_are_simulated(tmp_path: Path) -> None:
    uri = write_store(str(tmp_path), val=0)
    batches = validation_batches(uri, CONFIG, UnifiedDomain.of(PreparedStore(uri), CONFIG))
    assert len(batches) == 2  # of two groups each: one person seen by two scanners
    assert len({key for batch in batches for key in batch.key.tolist()}) == sum(len(batch.key) for batch in batches)
    assert all(len(set(batch.twin.tolist())) == 1 for batch in batches)


@pytest.mark.fast
def test_without_entries_every_group_is_another_simulated_person(tmp_path: Path) -> None:
    uri = write_store(str(tmp_path), val=0)
    maker = GroupMaker(uri, CONFIG, UnifiedDomain.of(PreparedStore(uri), CONFIG), "val")
    maker.share = 0.0  # as validation sets it
    assert [maker.source(number) for number in (0, 1, 2, 7)] == [(True, 0), (True, 1), (True, 2), (True, 7)]


@pytest.mark.fast
def test_without_validation_volumes_and_simulation_the_reason_is_told(tmp_path: Path) -> None:
    uri, config = write_store(str(tmp_path), val=0), training(simulated_share=0.0)
    domain = UnifiedDomain.of(PreparedStore(uri), config)
    with pytest.raises(DataError, match=r"no volume in split val.*manifest\.val_fraction.*train\.simulated_share"):
        validation_batches(uri, config, domain)


# --- the stream ---


class Inline:
    """Ray Data's `from_items`, `map_batches` and `iter_batches` in this process, block by block."""

    def __init__(self, blocks: list[dict[str, np.ndarray]]) -> None:
        self.blocks = blocks

    @classmethod
    def from_items(cls, items: list[dict[str, int]], override_num_blocks: int) -> Inline:
        numbers = np.array([item["id"] for item in items])
        return cls([{"id": part} for part in np.array_split(numbers, override_num_blocks)])

    def map_batches(self, make: Any, fn_constructor_args: tuple = (), **_: Any) -> Inline:
        function = make(*fn_constructor_args) if isinstance(make, type) else make
        return Inline([function(block) for block in self.blocks])

    def iter_batches(self, batch_size: int, **_: Any) -> Iterator[dict[str, np.ndarray]]:
        whole = {name: np.concatenate([block[name] for block in self.blocks]) for name in self.blocks[0]}
        for start in range(0, len(next(iter(whole.values()))), batch_size):
            yield {name: array[start : start + batch_size] for name, array in whole.items()}


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream without Ray."""
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(datasets.ray, "data", SimpleNamespace(from_items=Inline.from_items))
    monkeypatch.setattr(datasets.ray, "get_runtime_context", lambda: context)


def keys_per_step(
    store: str, config: Config, domain: UnifiedDomain, world: int = 1, first_step: int = 0
) -> list[list[int]]:
    """Keys of all slabs of a step, in the workers' order."""
    streams = [training_stream(store, config, domain, first_step, rank, world, 1) for rank in range(world)]
    return [[key for batch in batches for key in batch.key.tolist()] for batches in zip(*streams, strict=True)]


@pytest.mark.fast
@pytest.mark.parametrize("world", [2, 4])
def test_many_workers_see_in_a_step_what_one_sees(store: str, domain: UnifiedDomain, inline: None, world: int) -> None:
    config = training(volumes_per_step=4)
    alone = keys_per_step(store, config, domain)
    assert len(alone) == 6
    assert all(len(set(keys)) == 12 for keys in alone)
    assert keys_per_step(store, config, domain, world) == alone


@pytest.mark.fast
@pytest.mark.parametrize("world", [1, 2])
def test_restart_goes_on_with_the_same_batches(store: str, domain: UnifiedDomain, inline: None, world: int) -> None:
    whole = [list(training_stream(store, CONFIG, domain, 0, rank, world, 1)) for rank in range(world)]
    for rank in range(world):
        rest = list(training_stream(store, CONFIG, domain, 4, rank, world, 1))
        assert len(rest) == 2
        for batch, expected in zip(rest, whole[rank][4:], strict=True):
            assert all(torch.equal(value, getattr(expected, name)) for name, value in vars(batch).items())


@pytest.mark.fast
@pytest.mark.parametrize("size", [2, 5, 12])
def test_length_of_an_execution_does_not_matter(
    store: str, domain: UnifiedDomain, inline: None, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    expected = keys_per_step(store, CONFIG, domain)
    monkeypatch.setattr(datasets, "GROUPS_PER_EXECUTION", size)
    assert keys_per_step(store, CONFIG, domain) == expected
    assert keys_per_step(store, CONFIG, domain, 2, 3) == expected[3:]


@pytest.mark.fast
def test_nothing_is_left_after_the_last_step(store: str, domain: UnifiedDomain, inline: None) -> None:
    assert not list(training_stream(store, CONFIG, domain, 6, 0, 1, 1))


@pytest.mark.ray
def test_stream_on_ray_is_the_same_for_one_worker_and_two_and_after_a_restart(
    ray_cluster: None, store: str, domain: UnifiedDomain
) -> None:
    alone = list(training_stream(store, CONFIG, domain, 0, 0, 1, loaders=1))
    expected = [batch.key.tolist() for batch in alone]
    maker = GroupMaker(store, CONFIG, domain)
    for step, keys in enumerate(expected):
        assert keys == [key for place in (0, 1) for key in maker.group(2 * step + place)["key"].tolist()]
    halves = [list(training_stream(store, CONFIG, domain, 0, rank, 2, loaders=1)) for rank in (0, 1)]
    assert [first.key.tolist() + second.key.tolist() for first, second in zip(*halves, strict=True)] == expected
    rest = list(training_stream(store, CONFIG, domain, 4, 0, 1, loaders=1))
    assert len(rest) == 2
    for batch, whole in zip(rest, alone[4:], strict=True):
        assert all(torch.equal(value, getattr(whole, name)) for name, value in vars(batch).items())


@pytest.mark.fast
def test_at_full_simulation_the_teacher_is_left_with_what_cannot_be_simulated(
    store: str, domain: UnifiedDomain
) -> None:
    known = replace(domain, canonical={"T1w": domain.canonical["T1w"]})  # as if T2w had no signal equation
    maker = GroupMaker(store, training(simulated_share=1.0), known)
    assert {entry["sequence"] for entry in maker.entries} == {"T2w"}
    groups = [maker.group(number) for number in range(8)]
    assert [maker.source(number)[0] for number in range(8)] == [False, True] * 4
    assert [int(group["sequence"][0]) for group in groups] == [1, 0] * 4
