"""The simulated archive: a valid BIDS archive whose truth is known, the same bytes for the same seed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mmh_ray.bids.derivatives import write_dataset_description
from mmh_ray.bids.manifest import find_images
from mmh_ray.config import PhantomConfig
from mmh_ray.distributed.phantom import AGES, make_archive, plan, write_subject
from mmh_ray.errors import ConfigError
from mmh_ray.imaging.volume import read_volume
from mmh_ray.simulation.anatomy import simulate_anatomy
from mmh_ray.simulation.phantom import SITES, canonical, render

TINY = PhantomConfig(sites=2, subjects_per_site=1, travelers=1, spacing_mm=6, lesions=1.0, seed=3)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory, ray_cluster) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "bids"
    make_archive(str(root), TINY)
    return root


@pytest.mark.ray
def test_manifest_sees_every_site_mask_and_traveler(archive, caplog):
    rows = find_images(archive)
    assert caplog.messages == []
    assert len(rows) == 8
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["subject"], row["site"]) for row in rows} == {
        ("alder01", "alder"),
        ("birch01", "birch"),
        ("traveler01", "alder"),
        ("traveler01", "birch"),
    }
    assert {row["session"] for row in rows if row["subject"] == "traveler01"} == {"alder", "birch"}
    assert {row["sequence"] for row in rows} == {"T1w", "T2w"}
    assert all(row["mask_uri"] and row["age"] and row["sex"] in "MF" for row in rows)
    assert {row["site"]: (row["manufacturer"], row["field_strength_t"]) for row in rows} == {
        site.name: (site.manufacturer, site.field_strength_t) for site in SITES[:2]
    }
    assert not list(archive.rglob(".partial-*"))


@pytest.mark.ray
def test_masks_and_truth_share_the_grid_of_the_scan(archive):
    scan = read_volume(archive / "sub-traveler01/ses-birch/anat/sub-traveler01_ses-birch_T2w.nii.gz")
    masks = [read_volume(row["mask_uri"]) for row in find_images(archive) if row["subject"] == "traveler01"]
    truth = archive / "derivatives/truth/sub-traveler01/anat"
    maps = [read_volume(truth / f"sub-traveler01_label-{name}_probseg.nii.gz") for name in ("GM", "WM", "CSF")]
    lesion = read_volume(truth / "sub-traveler01_label-lesion_mask.nii.gz")
    for volume in (*masks, *maps, lesion):
        assert volume.data.shape == scan.data.shape
        np.testing.assert_array_equal(volume.affine, scan.affine)
    brain = masks[0].data > 0.5
    assert all(np.array_equal(mask.data > 0.5, brain) for mask in masks)
    assert 900e3 < brain.sum() * 6**3 < 2500e3  # mm³
    total = sum(volume.data for volume in maps)
    assert total.max() < 1 + 1e-5
    assert np.median(total[brain & (lesion.data == 0)]) > 0.9
    assert np.median(total[lesion.data > 0]) < 0.5
    assert "GeneratedBy" in json.loads((archive / "derivatives/truth/dataset_description.json").read_text())


@pytest.mark.ray
def test_files_hold_the_rendering_and_the_truth(archive):
    subject = plan(TINY)[-1]
    anatomy = simulate_anatomy(subject.person, TINY.spacing_mm)
    rendered = render(anatomy, SITES[1], "T1w", np.random.default_rng([3, subject.number, 1, 0]), TINY.spacing_mm)
    scan = read_volume(archive / "sub-traveler01/ses-birch/anat/sub-traveler01_ses-birch_T1w.nii.gz")
    np.testing.assert_allclose(scan.data, rendered, rtol=1e-6)  # quantised levels, stored as integers and a slope
    path = archive / "derivatives/truth/sub-traveler01/anat/sub-traveler01_desc-noisefree_T2w.nii.gz"
    np.testing.assert_array_equal(read_volume(path).data, canonical(anatomy, "T2w", TINY.spacing_mm))


@pytest.mark.ray
def test_same_seed_gives_the_same_bytes_in_any_process(archive, tmp_path):
    subjects = plan(TINY)
    for subject in reversed(subjects):
        write_subject(subject, tmp_path, TINY)
    mine, theirs = digests(tmp_path), digests(archive)
    assert len(mine) > 30
    assert mine == {name: theirs[name] for name in mine}
    make_archive(str(archive), TINY)
    assert digests(archive) == theirs


@pytest.mark.ray
def test_an_archive_is_no_place_for_something_else(archive, tmp_path):
    with pytest.raises(ConfigError, match="a phantom archive of"):
        make_archive(str(archive), PhantomConfig(sites=3))
    with pytest.raises(ConfigError):
        write_dataset_description(archive, archive, "1")


@pytest.mark.fast
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ConfigError, match="new or empty"):
        make_archive(str(tmp_path), TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="local"):
        make_archive("s3://bucket/bids", TINY)


@pytest.mark.fast
def test_the_plan_is_alike_at_every_site_and_stays_clear_of_training():
    subjects = plan(PhantomConfig(sites=4, subjects_per_site=8, travelers=6, lesions=0.5, seed=99))
    assert len({subject.label for subject in subjects}) == len(subjects) == 38
    ages = [[subject.person.age for subject in subjects if subject.sites == (site,)] for site in range(4)]
    assert max(map(np.mean, ages)) - min(map(np.mean, ages)) < 8
    assert all(AGES[0] <= age <= AGES[1] for own in ages for age in own)
    seeds = {subject.person.seed for subject in subjects}
    assert len(seeds) == 38
    assert max(seeds) < 1_000_000
    assert {subject.person.lesions for subject in subjects} <= {0, 2, 3, 4, 5}
    assert 8 < sum(subject.person.lesions > 0 for subject in subjects) < 30
    assert not any(subject.person.lesions for subject in plan(PhantomConfig(lesions=0)))


@pytest.mark.fast
@pytest.mark.parametrize(
    "settings",
    [
        {"subjects_per_site": 0, "travelers": 0},
        {"seed": 100},
        {"seed": -1},
        {"travelers": 10_000},
    ],
)
def test_seeds_that_would_collide_are_refused(settings):
    with pytest.raises(ConfigError):
        plan(PhantomConfig(**settings))
