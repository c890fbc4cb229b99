"""Configuration: accepted and refused values, and the round trip through YAML."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from mmh_ray.config import Config, TrainConfig, flatten, from_dict, load_config, to_dict
from mmh_ray.errors import ConfigError

pytestmark = pytest.mark.fast

BOUNDED = ("steps", "slabs_per_plane", "validate_every", "checkpoint_every", "validation_groups")
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def test_defaults_need_no_file() -> None:
    assert load_config() == Config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_files_load(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_there_are_shipped_files() -> None:
    assert {path.name for path in CONFIGS} >= {"demo.yaml", "global.yaml", "harmonize.yaml"}


@pytest.mark.parametrize(("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_cluster_examples_parse(name: str, kind: str) -> None:
    manifest = yaml.safe_load((CONFIGS[0].parent / "cluster" / name).read_text())
    assert manifest["kind"] == kind


def test_slurm_example_parses() -> None:
    subprocess.run(["bash", "-n", CONFIGS[0].parent / "cluster" / "slurm.sh"], check=True)


def test_file_then_overrides_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {steps: 7, seed: 3}\n")
    config = load_config(path, ["train.steps=8", "train.steps=9", "grid.shape=[8, 16, 24]"])
    assert (config.train.steps, config.train.seed, config.grid.shape) == (9, 3, (8, 16, 24))


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == Config()


def test_unknown_key_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["train.stepz=1"])
    message = str(caught.value)
    assert "unknown key train.stepz" in message
    assert "Did you mean train.steps?" in message
    assert all(f"train.{name}" in message for name in TrainConfig.__dataclass_fields__)


def test_unknown_section_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown key trayn; expected one of phantom, .*Did you mean train\?"):
        load_config(None, ["trayn.steps=1"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=many", "a whole number"),
        ("train.steps=1.5", "a whole number"),
        ("train.steps=true", "a whole number"),
        ("train.steps='3'", "a whole number"),
        ("train.use_gpu=1", "true or false"),
        ("train.use_gpu='yes'", "true or false"),
        ("train.learning_rate=true", "1e-12 to 10"),
        ("train.learning_rate=many", "1e-12 to 10"),
        ("train.run_name=3", "a name of at most 200 characters"),
        ("train.precision=fp8", "'fp32' or 'bf16'"),
        ("grid.shape=8", "a list of 3 items"),
        ("grid.shape=[8, 8]", "a list of 3 items"),
        ("grid.shape=[8, 8, 8, 8]", "a list of 3 items"),
        ("model.channels=[]", "a list of 1 to 6 items"),
        ("model.channels={a: 8}", "a list of 1 to 6 items"),
        ("train=3", "a mapping"),
    ],
)
def test_wrong_types_are_refused_by_dotted_key(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert override.partition("=")[0] in caught.value.received
    assert expected in caught.value.expected


def test_a_bad_item_of_a_list_is_refused_by_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["grid.shape=[8, 8, x]"])
    assert caught.value.received == "grid.shape[2]='x'"
    assert caught.value.expected == "8 to 1024, a multiple of 8, a whole number"
    assert "grid.shape=VALUE" in caught.value.remedy


def test_an_unknown_key_is_named_before_a_bad_value() -> None:
    with pytest.raises(ConfigError, match=r"unknown key train\.stepz"):
        load_config(None, ["train.steps=0", "train.stepz=1"])


def test_text_that_yaml_does_not_read_as_a_number_is_accepted_as_a_float() -> None:
    assert load_config(None, ["train.learning_rate=2e-3"]).train.learning_rate == 0.002


def test_one_text_is_a_list_of_one() -> None:
    assert load_config(None, ["target.site=berlin"]).target.site == ("berlin",)


@pytest.mark.parametrize(
    "override",
    [
        "phantom.sites=9",
        "phantom.lesions=1.5",
        "grid.shape=[60, 80, 64]",
        "model.slab=2",
        "model.sequences=[]",
        "train.steps=0",
        "train.workers=3",
        "train.volumes_per_step=3",
        "train.precision=bf16",
        "harmonize.planes=[oblique]",
        "harmonize.slots=-1",
        "harmonize.seed=-1",
        "harmonize.timeout_s=0",
        "harmonize.timeout_s=.nan",
        "quality.brain_ml=[2000, 800]",
        "quality.least_fit=7",
        "quality.most_bright=-0.1",
        "manifest.val_fraction=0.95",
    ],
)
def test_senseless_values_are_refused_by_section(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert override.partition(".")[0] + "." in caught.value.received


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"train.{key}", value) for key in BOUNDED for value in (0, -1)),
        *(("harmonize.steps", value) for value in (0, -3, 501)),
        *(("harmonize.inversion_depth", value) for value in (-1, 501)),
        *((f"harmonize.{key}", value) for key in ("batch_slabs",) for value in (0, -2)),
    ],
)
def test_out_of_bounds_is_refused_by_dotted_key(key: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{key}={value}"])
    assert caught.value.received == f"{key}={value}"
    assert f"Change {key}" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        *(f"train.{key}=1" for key in BOUNDED),
        "harmonize.steps=1",
        "harmonize.steps=500",
        "harmonize.inversion_depth=0",
        "harmonize.inversion_depth=500",
        "harmonize.batch_slabs=1",
    ],
)
def test_bounds_themselves_are_taken(override: str) -> None:
    key, _, value = override.partition("=")
    assert flatten(load_config(None, [override]))[key] == int(value)


def test_defaults_that_the_method_states() -> None:
    config = Config()
    assert config.model.channels == (32, 64, 96)
    assert (config.train.terminal_share, config.train.style_weight) == (0.8, 0.05)
    assert (config.restyle.noise, config.restyle.bias) == (0.04, 0.1)


def test_integers_pass_for_floats_and_null_for_optional() -> None:
    config = load_config(None, ["grid.spacing_mm=2", "manifest.site_pattern=null", "tracking.uri=sqlite:///x.db"])
    assert isinstance(config.grid.spacing_mm, float)
    assert config.manifest.site_pattern is None
    assert config.tracking.uri == "sqlite:///x.db"


def test_override_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        load_config(None, ["train.steps"])


@pytest.mark.parametrize("text", ["train: [unclosed", "- a\n- list\n"])
def test_unusable_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_round_trip_through_yaml() -> None:
    config = load_config(None, ["train.steps=3", "harmonize.planes=[axial]", "model.sequences=[FLAIR]"])
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_flatten_names_every_leaf_as_an_override_does() -> None:
    flat = flatten(Config())
    assert flat["train.steps"] == TrainConfig().steps
    assert len(flat) == sum(len(section) for section in to_dict(Config()).values())
    assert load_config(None, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in flat.items()])


def test_template_space_needs_the_registration() -> None:
    with pytest.raises(ConfigError, match=r"prepare\.register=False; expected true with harmonize\.space=template"):
        load_config(None, ["prepare.register=false", "harmonize.space=template"])


@pytest.mark.fast
@pytest.mark.parametrize(("weight", "counts"), [(1.0, [6, 3, 2, 1]), (0.0, [6, 4, 3, 2, 1])])
def test_fewer_workers_also_share_out_a_step_evenly(weight: float, counts: list[int]) -> None:
    assert TrainConfig(workers=6, volumes_per_step=12, consistency_weight=weight).worker_counts == counts
