"""Registration: known movements are recovered, wrong scans have a low quality, registered scans are left alone."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn import datasets
from scipy.spatial.transform import Rotation

from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.mask import find_brain
from mmh_ray.imaging.registration import POOR, Registration, in_template_space, register_brain
from mmh_ray.imaging.template import GRID_MM, OUTPUT_AFFINE, OUTPUT_SHAPE, template
from mmh_ray.imaging.volume import Volume, read_volume
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, Scanner, render

pytestmark = pytest.mark.slow

MM = 3.0
NOD = np.array([25.0, 0, 0])
LONG_ECHO = Scanner("long echo", te=140, gamma=0.8, blur_mm=2, noise=0.03)


def moved(degrees: np.ndarray, scale: float = 1.0, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """``(4, 4)`` turn and scaling about the middle of the template, then a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    middle = np.array([0.0, -18, 10])
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + shift
    return matrix


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance in mm between the positions of the template's brain under two transforms."""
    known = template()
    places = np.c_[np.argwhere(known.brain)[::50], np.ones(len(np.argwhere(known.brain)[::50]))] @ known.affine.T
    return float(np.linalg.norm(places @ (one - other)[:3].T, axis=1).mean())


@pytest.fixture(scope="module")
def headed() -> Anatomy:
    """A person with a scalp in the template's space; only the person's shape differs from it."""
    return simulate_anatomy(Person(4, scalp=True), MM)


@pytest.fixture(scope="module")
def scans(headed: Anatomy) -> dict[str, Volume]:
    """Scans of the head and of the brain alone."""
    rng = np.random.default_rng(0)
    heads = {name: render(headed, SITES[0], name, rng, MM) for name in ("T1w", "T2w")}
    brains = {f"{name} brain": data * headed.brain for name, data in heads.items()}
    return {name: Volume(data.astype(np.float32), headed.affine) for name, data in (heads | brains).items()}


def test_the_shipped_template_is_what_nilearn_makes_of_its_maps() -> None:
    known = template()
    image = datasets.load_mni152_template(resolution=GRID_MM)
    brain, grey, white = (
        np.asarray(load(resolution=GRID_MM).dataobj, np.float32)
        for load in (
            datasets.load_mni152_brain_mask,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    np.testing.assert_array_equal(known.affine, image.affine)
    np.testing.assert_allclose(known.image, image.get_fdata(), atol=1e-4)
    np.testing.assert_array_equal(known.brain, brain > 0.5)
    tissues = np.stack([grey, white, np.clip(brain - grey - white, 0, 1)])
    np.testing.assert_allclose(known.tissues, tissues, atol=1e-4)


def register(volume: Volume) -> Registration:
    """Register as the preparation does without a mask."""
    brain = find_brain(volume)
    return brain.registration or register_brain(volume, brain.mask)


@pytest.fixture(scope="module")
def nodding(scans: dict[str, Volume]) -> Volume:
    """The brain alone, tilted."""
    return Volume(scans["T1w brain"].data, moved(NOD) @ scans["T1w brain"].affine)


@pytest.fixture(scope="module")
def once(nodding: Volume) -> Registration:
    """The registration of the tilted brain."""
    return register(nodding)


@pytest.mark.parametrize("name", ["T1w", "T2w", "T1w brain", "T2w brain"])
def test_a_known_movement_is_found(scans: dict[str, Volume], name: str) -> None:
    scan, movement = scans[name], moved(np.array([25, -8, 10]), 0.92, (12, -20, 30))
    found = register(Volume(scan.data, movement @ scan.affine))
    assert found.method == "affine"
    assert distance(found.matrix, movement) < 3.5  # the person's own shape is 2 mm from the template's
    off = Rotation.from_matrix(found.rotation.T @ moved(np.array([25, -8, 10]))[:3, :3]).magnitude()
    assert np.degrees(off) < 3


@pytest.mark.parametrize("kind", ["left-handed", "permuted", "sform"])
def test_the_storage_order_of_the_file_has_no_effect(
    nodding: Volume, once: Registration, tmp_path: Path, kind: str
) -> None:
    scan = nodding
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = scan.data.shape[0] - 1
    stored = {
        "left-handed": Volume(scan.data[::-1].copy(), scan.affine @ flip),
        "permuted": Volume(scan.data.transpose(2, 0, 1).copy(), scan.affine[:, [2, 0, 1, 3]]),
        "sform": scan,
    }[kind]
    if kind == "sform":
        image = nib.Nifti1Image(scan.data, scan.affine)
        image.set_sform(scan.affine, code=1)
        image.set_qform(np.diag([MM, MM, MM, 1]), code=1)
        nib.save(image, tmp_path / "scan.nii.gz")
        stored = read_volume(tmp_path / "scan.nii.gz")
    again = register(stored)
    assert distance(once.matrix, again.matrix) < 0.5
    assert again.quality == pytest.approx(once.quality, abs=0.02)


def test_unit_of_the_scan_does_not_matter(nodding: Volume, once: Registration) -> None:
    scaled = register(nodding.like(np.float32(1000) * nodding.data))
    assert distance(once.matrix, scaled.matrix) < 0.1


@pytest.mark.parametrize(("scanner", "seed"), [(LONG_ECHO, 0), (SITES[3], 0), (SITES[3], 7)])
def test_a_bright_scalp_behind_a_dark_skull_does_not_mislead(scanner: Scanner, seed: int) -> None:
    """With the surroundings included, mutual information would treat the scalp of these T2w as the brain's border."""
    anatomy = simulate_anatomy(Person(907, scalp=True), 4.0)
    brain = find_brain(Volume(render(anatomy, scanner, "T2w", np.random.default_rng(seed), 4.0), anatomy.affine))
    assert brain.registration is not None
    assert brain.registration.quality > 2 * POOR
    assert 2 * (brain.mask & anatomy.brain).sum() > 0.9 * (brain.mask.sum() + anatomy.brain.sum())


def test_quality_is_high_where_the_template_fits(scans: dict[str, Volume]) -> None:
    for name in ("T1w brain", "T2w brain"):
        assert register(scans[name]).quality > 2 * POOR


@pytest.mark.parametrize("wrong", ["upside down", "noise"])
def test_quality_is_low_for_wrong_scans(scans: dict[str, Volume], rng: np.random.Generator, wrong: str) -> None:
    head = scans["T1w"]
    data = head.data[:, :, ::-1].copy() if wrong == "upside down" else rng.random(head.data.shape, np.float32)
    found = register(head.like(data))
    assert found.quality < 0.5 * POOR
    assert found.method == "translation"
    np.testing.assert_array_equal(found.matrix[:3, :3], np.eye(3))


def test_a_poor_fit_still_lies_on_the_head(scans: dict[str, Volume], rng: np.random.Generator) -> None:
    brain = scans["T1w brain"]
    noise = np.where(brain.data > 0, rng.random(brain.data.shape), 0).astype(np.float32)
    movement = moved(NOD, 1.0, (30, 40, -50))
    found = register_brain(Volume(noise, movement @ brain.affine), brain.data > 0)
    centre = (movement @ [0, -18, 10, 1])[:3]
    assert np.linalg.norm((found.matrix @ [0, -18, 10, 1])[:3] - centre) < 15


def test_a_brain_in_the_templates_space_is_left_there(scans: dict[str, Volume], headed: Anatomy) -> None:
    found = register_brain(scans["T1w"], headed.brain)
    assert found.method == "given space"
    assert found.quality > POOR
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    tilted = Volume(scans["T1w"].data, moved(NOD) @ headed.affine)
    assert register_brain(tilted, headed.brain).method == "affine"


def test_a_head_in_the_templates_space_is_found_there() -> None:
    """A search with the whole head from the usual starts ends far off for this one."""
    head = simulate_anatomy(Person(13, scalp=True), 4.0)
    scan = Volume(render(head, SITES[3], "T1w", np.random.default_rng(3), 4.0).astype(np.float32), head.affine)
    found = find_brain(scan)
    assert found.registration is not None
    assert found.registration.quality > 2 * POOR - 0.01
    assert distance(found.registration.matrix, np.eye(4)) < 8
    assert 2 * (found.mask & head.brain).sum() > 0.94 * (found.mask.sum() + head.brain.sum())


def test_thick_slices_are_registered(scans: dict[str, Volume], headed: Anatomy) -> None:
    thick = headed.affine @ np.diag([1, 1, 2.0, 1])
    shape = (*headed.brain.shape[:2], headed.brain.shape[2] // 2)
    data = to_grid(scans["T2w"].data, headed.affine, thick, shape)
    movement = moved(NOD)
    found = register(Volume(data, movement @ thick))
    assert distance(found.matrix, movement) < 4


def test_a_mask_of_a_few_voxels_is_only_centred() -> None:
    brain = np.zeros((30, 30, 30), bool)
    brain[10:14, 10:14, 10:14] = True
    found = register_brain(Volume(brain.astype(np.float32), np.diag([2.0, 2, 2, 1])), brain)
    assert found.method == "translation"
    assert found.degrees == 0


def test_the_templates_own_grid_is_that_of_nilearn(scans: dict[str, Volume]) -> None:
    image = datasets.load_mni152_template(resolution=1)
    assert image.shape == OUTPUT_SHAPE
    np.testing.assert_array_equal(image.affine, OUTPUT_AFFINE)
    movement = moved(NOD)
    there = in_template_space(
        Volume(scans["T1w"].data, movement @ scans["T1w"].affine), Registration(movement, 1.0, "affine"), order=1
    )
    assert there.data.shape == OUTPUT_SHAPE
    assert there.header["sform_code"] == 4
    still = in_template_space(scans["T1w"], Registration(np.eye(4), 1.0, "given space"), order=1)
    np.testing.assert_allclose(there.data, still.data, atol=1e-2 * still.data.max())
