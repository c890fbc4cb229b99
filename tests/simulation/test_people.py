"""Heads from label maps: shares add up to one, pathology is placed, ventricles grow, a seed gives the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.config import GridConfig
from mmh_ray.errors import DataError
from mmh_ray.simulation.head_traits import HeadTraits
from mmh_ray.simulation.label_maps import label_maps_in, read_label_map
from mmh_ray.simulation.people import Head, simulate_head, template_head
from mmh_ray.simulation.tissues import (
    AIR,
    ENHANCING,
    FLUID,
    GREY,
    LESION,
    NAMES,
    SOFT,
    WHITE,
    freesurfer_channels,
)

pytestmark = pytest.mark.fast

GRID = GridConfig(6.0, (32, 40, 32))
BONE = NAMES.index("bone")


@pytest.fixture(scope="module")
def label_map(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A head of shells at 2 mm: ventricle, white matter, cortex, fluid, bone, soft tissue, and a spinal canal below.

    Its axes are L, I, A.
    """
    axes = np.meshgrid(*[2.0 * (np.arange(n) - n / 2) for n in (110, 120, 110)], indexing="ij")
    radius = np.sqrt(axes[0] ** 2 + (0.85 * axes[1]) ** 2 + axes[2] ** 2)
    labels = np.select(
        [radius < 14, radius < 50, radius < 60, radius < 66, radius < 72, radius < 84],
        [4, 2, 3, 24, 515, 507],
        default=0,
    )
    canal = (np.hypot(axes[0], axes[1]) < 5) & (axes[2] < -66)
    labels[canal] = 24
    ras = nib.Nifti1Image(labels.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    path = tmp_path_factory.mktemp("maps") / "person-01_dseg.nii.gz"
    turned = ras.as_reoriented(nib.orientations.axcodes2ornt(("L", "I", "A")))
    nib.save(turned, path)
    return str(path)


def head(label_map: str, **changes: object) -> Head:
    return simulate_head(read_label_map(label_map), replace(HeadTraits(seed=3), **changes), GRID)  # type: ignore[arg-type]


def test_the_table_maps_labels_to_tissues_and_all_others_to_air() -> None:
    table = freesurfer_channels()
    assert [NAMES[table[number]] for number in (2, 3, 4, 13, 52, 16, 515)] == [
        "white matter",
        "grey matter",
        "fluid",
        "pallidum",
        "pallidum",
        "brain stem",
        "bone",
    ]
    assert table[1035] == table[2035] == GREY
    assert table[[0, 600, 9999]].tolist() == [AIR] * 3


def test_a_map_is_read_upright_and_without_its_spinal_canal(label_map: str) -> None:
    found = read_label_map(label_map)
    assert found.channels.shape[0] < 200  # of 220 mm: cropped to the head
    brain = found.channels <= WHITE
    assert np.argwhere(brain)[:, 2].min() > np.argwhere(found.channels != AIR)[:, 2].min()
    assert (found.channels == SOFT).any()


def test_shares_add_up_to_one_inside_the_head(label_map: str) -> None:
    total = head(label_map).fractions.astype(np.float32).sum(axis=0)
    assert total.max() < 1.002
    assert np.isclose(total[16, 20, 16], 1, atol=1e-3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_one_another_person(label_map: str) -> None:
    first, again, other = head(label_map), head(label_map), head(label_map, seed=4)
    np.testing.assert_array_equal(first.fractions, again.fractions)
    np.testing.assert_array_equal(first.texture, again.texture)
    assert np.abs(first.fractions.astype(float) - other.fractions).max() > 0.5


def test_depth_is_positive_in_the_brain_alone(label_map: str) -> None:
    found = head(label_map)
    np.testing.assert_array_equal(found.depth_mm > 0, found.brain)
    assert not found.brain[(found.fractions[BONE] > 0.9)].any()


@pytest.mark.slow
def test_ventricles_grow_and_cortex_thins(label_map: str) -> None:
    plain, wide, thin = head(label_map), head(label_map, ventricles=2.0), head(label_map, atrophy=0.5)
    middle = (slice(11, 21), slice(15, 25), slice(11, 21))  # the ventricle, without fluid at the surface
    plain_ml, wide_ml = (one.fractions[FLUID][middle].astype(float).sum() for one in (plain, wide))
    assert wide_ml > 1.3 * plain_ml
    assert thin.fractions[GREY].sum() < 0.95 * plain.fractions[GREY].astype(float).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("what", "channel"), [("lesions", LESION), ("tumours", LESION), ("cavities", FLUID)])
def test_requested_pathology_is_placed(label_map: str, what: str, channel: int) -> None:
    plain, ill = head(label_map), head(label_map, **{what: 3})
    assert ill.fractions[channel].astype(float).sum() > plain.fractions[channel].astype(float).sum() + 1
    total = ill.fractions.astype(np.float32).sum(axis=0)
    assert total.max() < 1.002


def test_some_tumours_take_up_contrast_agent(label_map: str) -> None:
    assert any(head(label_map, seed=seed, tumours=2).fractions[ENHANCING].any() for seed in range(6))


def test_template_people_need_no_map() -> None:
    found = template_head(HeadTraits(seed=1, lesions=2), GRID)
    assert 900 < found.brain.sum() * 0.216 < 2600
    assert found.fractions[LESION].any()
    assert not found.fractions[BONE].any()


def test_too_few_maps_are_refused(tmp_path: Path, label_map: str) -> None:
    with pytest.raises(DataError, match="2 label maps or more"):
        label_maps_in(tmp_path)
    assert len(label_maps_in(_two(tmp_path))) == 2


def _two(folder: Path) -> Path:
    for name in ("b_dseg.nii.gz", "a_dseg.nii.gz"):
        (folder / name).touch()
    return folder
