"""Which images adapters are trained on, and what happens to the other sites if one fails; without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch
from safetensors.torch import save_file

from mmh_ray.config import Config, HarmonizeConfig, StyleConfig, TargetConfig
from mmh_ray.distributed import style_encoder, train_target
from mmh_ray.distributed.style_encoder import chosen, learn_aggregator
from mmh_ray.distributed.target_plan import TargetTask, plan_site
from mmh_ray.distributed.target_selection import target_style
from mmh_ray.distributed.target_storage import put_target
from mmh_ray.distributed.train_target import TrainedTarget, train_targets
from mmh_ray.errors import ConfigError, DataError, ModelError
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import Case
from mmh_ray.evaluation.metrics.registry import OURS
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.models.style.vectors import StyleVectors
from mmh_ray.models.target.bundle import save_target

pytestmark = pytest.mark.fast

SHAPE = (16, 16, 16)


AFFINE = np.diag([3.0, 3, -3, 1])
STEPS = ["mask: given", "bias field: N4 (30, 20, 10)"]


def entry(site: str, number: int, split: str = "train", sequence: str = "T1w", session: str = "") -> dict[str, Any]:
    """Index row of a store."""
    subject = f"{site}{number}"
    about = {"image_id": f"sub-{subject}{session and f'_ses-{session}'}_{sequence}", "subject": subject, "site": site}
    return about | {"sequence": sequence, "split": split, "status": "ok"} | geometry()


def geometry() -> dict[str, Any]:
    """Settings of the model of these tests."""
    return {"shape": SHAPE, "affine": AFFINE, "steps": STEPS}


@pytest.fixture
def bundle() -> Any:
    """The parts of the global model that planning uses."""
    config = replace(Config(), grid=replace(Config().grid, shape=SHAPE))
    return SimpleNamespace(config=config, hash="b")


def store(travelers: int = 2) -> Any:
    """A store with T1w and T2w of everybody: three people at the target site and four at each of two other sites.

    ``travelers`` more people of the target site are in its test set.
    """
    people = [("north", number, "train") for number in range(3)]
    people += [(site, number, "train") for site in ("south", "west") for number in range(4)]
    people += [("north", 100 + number, "test") for number in range(travelers)]
    return SimpleNamespace(
        uri="store", index=[entry(*person, sequence) for person in people for sequence in ("T1w", "T2w")]
    )


def rows_of(task: TargetTask) -> list[tuple[Any, ...]]:
    """Training and validation rows of the site, and of the sources."""
    return [task.training, task.validation, task.sources, task.validation_sources]


def test_nobody_is_trained_and_validated_on(bundle: Any) -> None:
    tasks = plan_site(store(), "north", bundle, Config())
    for task in tasks:
        assert [len(part) for part in rows_of(task)] == [2, 1, 6, 2]
        people = [{row["subject"] for row in part} for part in rows_of(task)]
        assert len(set().union(*people)) == sum(map(len, people))


def test_sequences_stay_apart(bundle: Any) -> None:
    tasks = plan_site(store(), "north", bundle, Config())
    assert [task.sequence for task in tasks] == ["T1w", "T2w"]
    for task in tasks:
        assert {row["sequence"] for part in rows_of(task) for row in part} == {task.sequence}


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ((1, 1, 1, 1, 1), [4, 1]),
        ((1, 4), [4, 1]),  # few images for validation are better than one for training
        ((3, 3, 3), [6, 3]),
        ((2, 1, 2, 1), [5, 1]),
        ((5,), [4, 1]),  # only one person: images are held back
    ],
)
def test_whole_subjects_are_held_back(bundle: Any, sessions: tuple[int, ...], expected: list[int]) -> None:
    many = store()
    many.index = [row for row in many.index if row["site"] != "north" and row["sequence"] == "T1w"]
    for number, count in enumerate(sessions):
        many.index += [entry("north", number, session=f"{session}") for session in range(count)]
    (task,) = plan_site(many, "north", bundle, Config())
    assert [len(task.training), len(task.validation)] == expected
    shared = {row["subject"] for row in task.training} & {row["subject"] for row in task.validation}
    assert bool(shared) == (len(sessions) == 1)


def test_travelers_decide_nothing(bundle: Any) -> None:
    assert plan_site(store(2), "north", bundle, Config()) == plan_site(store(0), "north", bundle, Config())


def test_the_seed_draws_the_images(bundle: Any) -> None:
    many = store()
    many.index += [entry("north", 10 + number) for number in range(20)]

    def drawn(seed: int) -> list[str]:
        task, _ = plan_site(many, "north", bundle, Config(target=TargetConfig(images=5, seed=seed)))
        return [row["image_id"] for row in (*task.training, *task.validation)]

    assert [len(drawn(seed)) for seed in range(3)] == [5, 5, 5]
    assert drawn(0) == drawn(0) != drawn(1)


def test_one_source_image_does_not_do(bundle: Any) -> None:
    few = store()
    few.index = [row for row in few.index if row["site"] == "north" or row["image_id"] == "sub-south0_T1w"]
    with pytest.raises(DataError, match=r"3 T1w images, and 1 of other sites; 3 T2w.*and 2 of other sites"):
        plan_site(few, "north", bundle, Config())


def test_a_sequence_that_is_short_is_left_out_and_named(bundle: Any, caplog: pytest.LogCaptureFixture) -> None:
    few = store()
    few.index = [row for row in few.index if row["sequence"] == "T1w" or row["site"] in ("north", "west")]
    few.index = [row for row in few.index if row["image_id"] != "sub-north0_T2w"]
    for site, shortage in (("north", "2 T2w images, and 4 of other sites"), ("south", "0 T2w images, and 6 of other")):
        (task,) = plan_site(few, site, bundle, Config())
        assert task.sequence == "T1w"
        assert f"target {site} has {shortage}" in caplog.text
    few.index = [row for row in few.index if row["site"] != "north" or row["sequence"] == "T1w"]
    (task,) = plan_site(few, "west", bundle, Config())  # it has enough T2w, but the other sites have none
    assert task.sequence == "T1w"
    assert "target west has 4 T2w images, and 0 of other sites" in caplog.text


@pytest.mark.parametrize(
    ("change", "received"),
    [
        ({"shape": (16, 16, 24)}, r"shape \(16, 16, 24\)"),
        ({"affine": np.diag([4.0, 4, 4, 1])}, "4 x 4 x 4 mm"),
        ({"steps": ["bias field: not asked for"]}, "bias field: not asked for; expected.*N4"),
    ],
    ids=["shape", "spacing", "bias field"],
)
def test_a_store_that_was_prepared_otherwise_is_refused(bundle: Any, change: dict[str, Any], received: str) -> None:
    other = store()
    other.index = [row | change for row in other.index]
    with pytest.raises(DataError, match=received):
        plan_site(other, "north", bundle, Config())


def test_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    config = Config(target=TargetConfig(("a b", "a-b"), storage=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"sites 'a b' and 'a-b', both mmh-target-a-b"):
        train_targets("store", "model", config)
    place = tmp_path / "targets" / "a-b"
    place.mkdir(parents=True)
    (place / "precious").touch()
    config = replace(config, target=replace(config.target, site=("a b",)))
    with pytest.raises(ConfigError, match="no target"):
        train_targets("store", "model", config)
    (place / "target.json").write_text('{"site": "a-b"}')
    with pytest.raises(ConfigError, match="target of site 'a-b'"):
        train_targets("store", "model", config)


@pytest.mark.parametrize("names", [("site 1", "site_1"), ("Alder", "alder"), ("Orléans", "Orleans"), ("a b", "ab")])
def test_sites_whose_images_would_have_one_name_are_refused_before_training(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    config = Config(target=TargetConfig(names, storage=str(tmp_path)))
    with pytest.raises(ConfigError, match=rf"sites '{names[0]}' and '{names[1]}'"):
        train_targets("store", "model", config)


@pytest.mark.parametrize("name", ["東京", "—", ".."])
def test_a_site_whose_name_leaves_no_label_is_refused_before_training(tmp_path: Path, name: str) -> None:
    config = Config(target=TargetConfig((name,), storage=str(tmp_path)))
    with pytest.raises(ConfigError, match="letters A to Z"):
        train_targets("store", "model", config)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"site": 3}', "[" * 10_000, "folder"], ids=repr)
def test_facts_of_an_earlier_target_that_cannot_be_read_are_no_target(tmp_path: Path, content: str) -> None:
    facts = tmp_path / "targets" / "north" / "target.json"
    facts.parent.mkdir(parents=True)
    if content == "folder":
        facts.mkdir()
    else:
        facts.write_text(content)
    with pytest.raises(ConfigError, match="no target"):
        train_targets("store", "model", Config(target=TargetConfig(("north",), storage=str(tmp_path))))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Any) -> SimpleNamespace:
    """Replaces what :func:`train_targets` calls, and returns the controls and records of the stand-ins.

    ``outcome`` gives the result of a task and ``publish`` that of a site. ``ended`` records the runs that failed, and
    ``aggregated`` the rows that the aggregator was fitted to.
    """
    found = SimpleNamespace(index=store().index, outcome=lambda task: None, ended={}, aggregated=[])
    found.index.append(entry("west", 9, sequence="FLAIR"))
    found.publish = lambda site, *_: TrainedTarget(site, "", f"models:/mmh-target-{site}/1", "", {})
    tracking = SimpleNamespace(
        resolve_model=lambda *_: (tmp_path, "models:/mmh-global/1"),
        configure=lambda *_: None,
        target_model_name=lambda site: f"mmh-target-{site}",
    )

    def start(site: str, *_: Any) -> SimpleNamespace:
        fail_run = partial(found.ended.setdefault, f"target-{site}", "FAILED")
        return SimpleNamespace(run_id=site, outbox=None, fail=fail_run)

    stand_ins = {
        "tracking": tracking,
        "SiteRun": SimpleNamespace(start=start),
        "send_left": lambda _: None,
        "connect": lambda: None,
        "aggregator_for": lambda _store, rows, *_: found.aggregated.extend(rows),
        "PreparedStore": lambda _: SimpleNamespace(uri="store", index=found.index, data_hash="d"),
        "load_bundle": lambda _: bundle,
        "_publish": lambda *given: found.publish(*given),
        "_run": lambda tasks, *_: [(task, found.outcome(task)) for task in tasks],
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(train_target, name, value)
    return found


@pytest.fixture
def of_sites(tmp_path: Path) -> Callable[..., Config]:
    """Settings for some sites."""
    return lambda *sites: Config(target=TargetConfig(sites, storage=str(tmp_path)))


def fail(*_: Any, **__: Any) -> Any:
    raise ValueError("burst")


@pytest.mark.parametrize("part", ["training", "publishing"])
def test_a_site_that_fails_fails_alone(driver: SimpleNamespace, of_sites: Callable[..., Config], part: str) -> None:
    if part == "training":
        driver.outcome = lambda task: ValueError("burst") if task.site == "south" else None
    else:
        publish = driver.publish
        driver.publish = lambda site, *given: fail() if site == "south" else publish(site, *given)
    with pytest.raises(ModelError, match=r"target south: burst.*models:/mmh-target-north/1.*target.site=\[south\]"):
        train_targets("store", "model", of_sites("south", "north"))
    assert {row["sequence"] for row in driver.aggregated} == {"T1w", "T2w"}  # the model has no FLAIR
    assert driver.ended == {"target-south": "FAILED"}  # _publish ends the run of the other site
    with pytest.raises(ValueError, match="burst"):
        train_targets("store", "model", of_sites("south"))


def test_a_site_that_cannot_be_planned_fails_alone(driver: SimpleNamespace, of_sites: Callable[..., Config]) -> None:
    driver.index = [row for row in driver.index if row["image_id"] not in ("sub-north0_T1w", "sub-north0_T2w")]
    with pytest.raises(ModelError, match=r"north with 2 T1w images.*mmh-target-south/1.*target.site=\[north, oak\]"):
        train_targets("store", "model", of_sites("north", "south", "oak"))
    with pytest.raises(DataError, match="site north with 2 T1w images"):
        train_targets("store", "model", of_sites("north"))
    assert not driver.ended  # no run of theirs was started


def test_a_site_is_named_once() -> None:
    with pytest.raises(ConfigError, match=r"target.site=\('north', 'north'\); expected each item once"):
        TargetConfig(("north", "north"))


def test_adapters_do_not_learn_on_inversion(of_sites: Callable[..., Config]) -> None:
    config = replace(of_sites("north"), harmonize=HarmonizeConfig(inversion_depth=5))
    with pytest.raises(ConfigError, match=r"harmonize\.inversion_depth=5"):
        train_targets("store", "model", config)


def test_an_earlier_target_stays_until_the_new_one_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, place = tmp_path / "new", tmp_path / "runs" / "targets" / "north"
    for folder, names in ((new, ("target.json", "T1w.safetensors")), (place, ("target.json", "T2w.safetensors"))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(folder.name)
    storage = pyarrow.fs.LocalFileSystem()
    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.fs, "copy_files", fail)
        with pytest.raises(ValueError, match="burst"):
            put_target(storage, new, str(place))
    assert {path.name: path.read_text() for path in place.iterdir()} == dict.fromkeys(
        ("target.json", "T2w.safetensors"), "north"
    )
    put_target(storage, new, str(place))
    assert {path.name: path.read_text() for path in place.iterdir()} == dict.fromkeys(
        ("target.json", "T1w.safetensors"), "new"
    )
    assert [path.name for path in place.parent.iterdir()] == ["north"]


def test_the_aggregator_learns_from_styles_and_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(len(row["image_id"]) + int(row["image_id"][-5]))
        image = rng.uniform(0.2, 1, SHAPE).astype(np.float32)
        return image ** (2 if row["site"] == "south" else 1), np.ones(SHAPE, bool)

    monkeypatch.setattr(style_encoder, "PreparedStore", lambda _: SimpleNamespace(read=read))
    rows = chosen([row for row in store().index if row["sequence"] == "T1w"])
    assert {row["split"] for row in rows} == {"train"}
    assert len(rows) == 11
    config = Config(style=StyleConfig(slices=2, steps=20))
    trained = learn_aggregator("store", rows[:3] + rows[5:8], config, 3.0)
    assert trained.figures["contrast"] < trained.figures["contrast_before"]
    assert trained.figures["spread"] >= 0.05
    plain = make_style_encoder(config.style, 3.0)
    learned = make_style_encoder(config.style, 3.0, trained.state)
    assert not torch.equal(learned.aggregator.query, plain.aggregator.query)
    image, affine = read(rows[0])[0], np.diag([3.0, 3, 3, 1])
    one, other = (StyleVectors(config.style, state)(image, image > 0, affine) for state in ({}, trained.state))
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(one, other, atol=1e-3)


def test_a_target_of_another_tower_is_evaluated_with_its_own_aggregator(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    from open_clip.model import _build_vision_tower  # slow import, not needed to collect the other tests

    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder in (one, other):
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision}))
        save_file(_build_vision_tower(8, vision).state_dict(), folder / "open_clip_model.safetensors")
    config = Config(style=StyleConfig(backbone=str(one), slices=2))
    encoder = make_style_encoder(config.style, 3.0)
    torch.nn.init.normal_(encoder.aggregator.plane)  # as if it had been trained
    training, base = {"style_encoder": encoder.describe()}, {"hash": "b" * 64, "uri": "models:/mmh-global/1"}
    save_target(tmp_path / "north", "north", base, {}, {}, config, training, encoder.aggregator.state_dict())
    made = {"URI": (tmp_path / "north").as_uri(), "training": training}
    (tmp_path / "sub-1_T1w.json").write_text(json.dumps({"TargetModel": made}))
    answer = ImageRecord("sub-1_ses-north_T1w", "1", "north", "T1w")
    source = ImageRecord("sub-1_T1w", "1", "south", "T1w", outputs={OURS: str(tmp_path / "sub-1_T1w.nii.gz")})
    case = Case("1", "T1w", (source,), reference=answer)
    image, affine = rng.uniform(0.2, 1, SHAPE).astype(np.float32), np.diag([3.0, 3, 3, 1])
    found, plain = (
        describe(image, image > 0, affine) for describe in (target_style([case], config), StyleVectors(config.style))
    )
    wanted = StyleVectors(config.style, encoder.aggregator.state_dict())(image, image > 0, affine)
    assert np.array_equal(found, wanted)
    assert not np.allclose(found, plain, atol=1e-3)
    for backbone in (str(other), "embedded"):
        with pytest.raises(ModelError, match=r"style encoder .*backbone_sha256.* for "):
            target_style([case], Config(style=StyleConfig(backbone=backbone, slices=2)))
