"""A model trained on simulation alone: the chosen domain, held-out people, and a bundle that harmonizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mmh_ray.config import (
    Config,
    GridConfig,
    HarmonizeConfig,
    ModelConfig,
    PrepareConfig,
    SimulationConfig,
    TrackingConfig,
    TrainConfig,
    load_config,
)
from mmh_ray.distributed.datasets import GroupMaker, validation_batches
from mmh_ray.distributed.domains import CACHED_EXAMPLES, VALIDATION_PEOPLE, VIEWS, ChosenDomain, simulation_hash
from mmh_ray.distributed.train import first_weights, train_global
from mmh_ray.errors import ConfigError
from mmh_ray.imaging.intensity import quantile_function
from mmh_ray.models.bundle import Bundle, load_bundle
from mmh_ray.models.sampling import harmonize_volume
from mmh_ray.simulation import examples
from mmh_ray.simulation.protocols import SEQUENCES, canonical_levels
from mmh_ray.simulation.tissues import WHITE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config(
    grid=GridConfig(6.0, (32, 40, 32)),
    prepare=PrepareConfig(n4_iterations=(5, 5)),
    model=ModelConfig(sequences=SEQUENCES, channels=(8, 16), slab=1, distances=(1, 2), patch=2),
    train=TrainConfig(
        steps=2,
        volumes_per_step=2,
        slabs_per_plane=1,
        warmup_steps=1,
        validate_every=2,
        checkpoint_every=2,
        validation_groups=4,
        run_name="base",
    ),
    harmonize=HarmonizeConfig(planes=("axial",)),
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """GroupMaker sets torch to one thread in its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def domain() -> ChosenDomain:
    return ChosenDomain.of_simulation(CONFIG)


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    """A folder with six label maps: spheres of white matter of different sizes."""
    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in (80, 90, 80)], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    for number in range(6):
        labels = np.where(radius < 25 + 2 * number, 2, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"person-{number}_dseg.nii.gz")
    return tmp_path


@pytest.mark.slow
def test_the_domain_is_the_written_look_and_no_average_of_sites(domain: ChosenDomain) -> None:
    for sequence in SEQUENCES:
        assert (np.diff(domain.quantiles[sequence]) >= 0).all()
    assert domain.quantiles["T1w"][-20] == pytest.approx(canonical_levels("T1w")[WHITE], rel=0.1)


@pytest.mark.slow
def test_a_group_is_a_function_of_its_number_and_needs_no_store(domain: ChosenDomain) -> None:
    first, again = (GroupMaker(None, CONFIG, domain).group(5) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert {int(GroupMaker(None, CONFIG, domain).group(2 * n)["sequence"][0]) for n in range(4)} == {0, 1, 2, 3}
    assert len(validation_batches(None, CONFIG, domain)) == 2


@pytest.mark.slow
def test_an_example_serves_several_groups_and_is_made_once(
    domain: ChosenDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group takes other slices of it; training and validation never share an example."""
    numbers = [domain.example_number(ordinal) for ordinal in range(2 * VIEWS * CACHED_EXAMPLES)]
    assert [numbers.count(number) for number in range(2 * CACHED_EXAMPLES)] == [VIEWS] * 2 * CACHED_EXAMPLES
    assert domain.example_number(VALIDATION_PEOPLE + 77) == VALIDATION_PEOPLE + 77
    made: list[int] = []
    monkeypatch.setattr(
        ChosenDomain,
        "example",
        lambda _self, _config, _sequence, number: (
            made.append(number),
            *(np.ones(CONFIG.grid.shape, kind) for kind in (np.float32, np.float32, bool)),
        )[1:],
    )
    maker = GroupMaker(None, CONFIG, domain)
    groups = [maker.group(number) for number in range(VIEWS * CACHED_EXAMPLES)]
    assert made == list(range(CACHED_EXAMPLES))
    assert not np.array_equal(groups[0]["position"], groups[CACHED_EXAMPLES]["position"])


@pytest.mark.slow
def test_people_to_validate_on_come_from_maps_that_are_never_trained_on(
    label_maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, simulation=SimulationConfig(str(label_maps)))
    domain = ChosenDomain.of_simulation(config)
    asked: list[tuple[bool, str]] = []
    read = examples.read_label_map

    def noted(path: str) -> object:
        asked.append((is_validation, Path(path).name))
        return read(path)

    monkeypatch.setattr(examples, "read_label_map", noted)
    for is_validation in (False, True):
        for number in range(0, 20, 2):
            domain.example(config, "T1w", number + VALIDATION_PEOPLE * is_validation)
    trained = {name for held_out, name in asked if not held_out}
    held_out = {name for held_out, name in asked if held_out}
    assert held_out == {"person-4_dseg.nii.gz", "person-5_dseg.nii.gz"}
    assert trained
    assert not trained & held_out


@pytest.mark.slow
def test_other_maps_are_other_data(label_maps: Path, domain: ChosenDomain) -> None:
    config = replace(CONFIG, simulation=SimulationConfig(str(label_maps)))
    other = ChosenDomain.of_simulation(config)
    assert simulation_hash(other) != simulation_hash(domain)
    assert simulation_hash(domain) == simulation_hash(ChosenDomain.of_simulation(CONFIG))


@pytest.mark.fast
def test_a_sequence_without_physics_is_refused() -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, sequences=("T1w", "T2starw")))
    with pytest.raises(ConfigError, match="T1w, T2w, FLAIR, PDw without PREPARED"):
        ChosenDomain.of_simulation(config)


@pytest.mark.fast
def test_the_recipe_is_valid_and_of_all_sequences() -> None:
    config = load_config(ROOT / "configs/base.yaml")
    assert config.model.sequences == SEQUENCES
    assert config.tracking.model_name == "mmh-base"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic|sqlalchemy|alembic|ray)(\..*)?")
@pytest.mark.filterwarnings(r"ignore::FutureWarning:(mlflow|ray)(\..*)?")
@pytest.mark.filterwarnings(r"ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_model_is_trained_from_nothing_but_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", model_name="mmh-base")
    sequences = ("T1w", "FLAIR")
    config = replace(
        CONFIG,
        model=replace(CONFIG.model, sequences=sequences),
        train=replace(CONFIG.train, storage=str(tmp_path / "runs")),
        tracking=tracking,
    )
    trained = train_global(None, config)
    bundle = load_bundle(trained.bundle)
    assert bundle.config.model.sequences == sequences
    assert trained.model_uri == "models:/mmh-base/1"
    assert np.isfinite(trained.validation["val_loss"])
    with_levels, without = (histogram_error(bundle, has_levels) for has_levels in (True, False))
    assert with_levels < 0.5 * without
    first = first_weights(replace(config, train=replace(config.train, start_from=trained.bundle)))
    assert first is not None
    assert all(torch.equal(first[name], weight) for name, weight in bundle.model.denoiser.state_dict().items())
    other = replace(config, model=replace(config.model, slab=3), train=replace(config.train, start_from=trained.bundle))
    with pytest.raises(ConfigError, match=r"model\.slab=3 instead of 1"):
        first_weights(other)


def histogram_error(bundle: Bundle, has_levels: bool) -> float:
    """Mean absolute difference between the T1w quantiles of the harmonized scans and of the truth, pooled over people.

    Neither weights nor levels were fitted to these people.
    """
    model = bundle.model
    levels = model.levels
    if not has_levels:
        model.levels = {}
    answers = []
    truths = []
    domain = ChosenDomain.of_simulation(bundle.config)
    for person in range(8):
        scan, truth, mask = domain.example(bundle.config, "T1w", VALIDATION_PEOPLE + 2 * person)
        answers.append(harmonize_volume(model, scan, mask, 0, bundle.config.harmonize)[mask])
        truths.append(truth[mask])
    model.levels = levels
    difference = quantile_function(np.concatenate(answers)) - quantile_function(np.concatenate(truths))
    return float(np.abs(difference).mean())
