"""Spikes, a second head, wide fluid, integer overflow and a misplaced mask are detected; a normal scan has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmh_ray.config import GridConfig, PrepareConfig, QualityConfig
from mmh_ray.errors import RefusedError
from mmh_ray.imaging.ground import find_ground
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.volume import Volume
from mmh_ray.quality.checks import check_scan
from mmh_ray.quality.describe import describe_air, describe_scan
from mmh_ray.quality.measures import flags
from mmh_ray.quality.oddities import mask_offset, second_head, spikes, widest_fluid, wrapped
from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import SITES, render

pytestmark = pytest.mark.slow

SPACING = 4.0
GRID = GridConfig(SPACING, (48, 56, 48))
CONFIG = QualityConfig()
IDENTITY = Registration(np.eye(4), 0.6, "given space")


@pytest.fixture(scope="module")
def person() -> Anatomy:
    """A person with a scalp, on the template's axes."""
    return simulate_anatomy(Person(4, scalp=True), SPACING)


@pytest.fixture(scope="module", params=["T1w", "T2w"])
def scan(request: pytest.FixtureRequest, person: Anatomy) -> np.ndarray:
    """A scan of the person in unit intensity."""
    data = render(person, SITES[0], request.param, np.random.default_rng(0), SPACING)
    return (data / np.percentile(data[person.brain], 99.5)).astype(np.float32)


def figures_of(person: Anatomy, data: np.ndarray, brain: np.ndarray | None = None) -> dict[str, float]:
    """All measures of a scan with a given brain mask and the identity as registration."""
    volume = Volume(data.astype(np.float32), person.affine)
    mask = person.brain if brain is None else brain
    prepared = prepare_volume(volume, mask, GRID, PrepareConfig(n4=False, register=False))
    return describe_scan(volume, prepared.brain, IDENTITY, replace(prepared, registration=IDENTITY))


def flagged(figures: dict[str, float]) -> set[str]:
    """Labels of the measures that are flagged."""
    return {flag.split(":")[0] for flag in flags(figures, CONFIG)}


def test_a_normal_scan_has_no_flags(person: Anatomy, scan: np.ndarray) -> None:
    figures = figures_of(person, 700 * scan)
    assert flagged(figures) <= {"brain, ml"}
    for name in ("spikes", "wrapped", "fill_step"):
        assert figures[name] == 0
    assert figures["second_head"] < 0.05
    assert figures["mask_offset"] < 3
    assert 2 < figures["widest_fluid"] < 12


@pytest.mark.parametrize("height", [3.0, -2.0], ids=["bright", "dark"])
def test_isolated_spikes_are_counted(person: Anatomy, scan: np.ndarray, height: float) -> None:
    places = np.argwhere(person.brain)
    spoilt = scan.copy()
    chosen = places[np.random.default_rng(1).choice(len(places), 60, replace=False)]
    spoilt[tuple(chosen.T)] += height
    assert spikes(spoilt, person.brain) > 45  # adjacent ones are not counted
    assert spikes(scan, person.brain) == 0
    if height > 0:
        assert "spikes" in flagged(figures_of(person, 700 * spoilt))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_heads_in_one_volume_are_flagged(person: Anatomy, scan: np.ndarray, axis: int) -> None:
    one = Volume(scan, person.affine)
    two = Volume(np.concatenate([scan, scan], axis), person.affine)
    assert second_head(one) < 0.05
    assert second_head(two) > 0.5


@pytest.mark.parametrize("radius", [20.0, 28.0])
def test_a_large_resection_is_flagged(person: Anatomy, radius: float) -> None:
    places = np.argwhere(person.brain)
    centre = places[np.abs(places - (places.mean(0) + np.array([8, 0, 4]))).sum(1).argmin()]
    away = np.linalg.norm(np.moveaxis(np.indices(person.brain.shape), 0, -1) - centre, axis=-1) * SPACING
    for sequence in ("T1w", "T2w"):
        data = render(person, SITES[0], sequence, np.random.default_rng(0), SPACING)
        percent = 1 if sequence == "T1w" else 99.5
        fluid = np.percentile(data[person.brain], percent)
        hollow = np.where((away < radius) & person.brain, fluid, data)
        figures = figures_of(person, hollow)
        assert figures["widest_fluid"] == pytest.approx(radius, abs=2.5 * SPACING)
        assert "widest fluid, mm" in flagged(figures)


def test_without_fluid_there_is_no_ball_of_it() -> None:
    brain = np.ones((9, 9, 9), bool)
    assert widest_fluid(np.full(brain.shape, 0.5), brain, 3.0, 0.5, bright=True) == 0


@pytest.mark.parametrize(
    ("kind", "top"),
    [
        *[("uint8", top) for top in (0.5, 0.6, 0.8, 0.9)],
        *[(kind, top) for kind in ("uint16", "int16", "uint16 scaled") for top in (0.5, 0.9)],
    ],
)
def test_integer_overflow_is_refused(
    request: pytest.FixtureRequest, person: Anatomy, scan: np.ndarray, kind: str, top: float
) -> None:
    """The largest value of the type is ``top`` times the brain's 99.5th percentile."""
    if request.node.callspec.id == "T2w-uint8-0.8":
        pytest.xfail("few voxels overflowed: at 4 mm as many dark ones lie beside bright ones in scans without a fault")
    most = {"uint8": 255, "uint16": 65535, "int16": 32767, "uint16 scaled": 65535}[kind]
    whole = np.round(scan * most / top).astype(np.int64)
    data = whole.astype(np.int16 if kind == "int16" else np.uint8 if kind == "uint8" else np.uint16).astype(np.float32)
    data = data * 0.013 - 3 if kind == "uint16 scaled" else data
    assert wrapped(data) > CONFIG.most_wrapped
    figures = figures_of(person, data)
    with pytest.raises(RefusedError, match="integer overflow"):
        check_scan("PDw", figures, CONFIG)


@pytest.mark.parametrize("fill", [None, -1000.0, 5.0])
def test_bright_edges_are_not_integer_overflow(person: Anatomy, scan: np.ndarray, fill: float | None) -> None:
    saturated = np.minimum(scan, np.percentile(scan[person.brain], 80))
    for data in (scan, saturated, np.where(person.brain, scan, 0), np.where(person.brain, saturated, -0.5)):
        spoilt = data.copy()
        if fill is not None:
            spoilt[:4, :, :6] = fill
        nothing = find_ground(Volume(spoilt.astype(np.float32), person.affine)).fill
        values = nothing.values if nothing else ()
        assert wrapped(spoilt.astype(np.float32), (float(data[0, 0, 0]), *values)) == 0


@pytest.mark.parametrize(("axis", "millimetres"), [(0, -12.0), (1, 12.0), (2, -12.0)])
def test_a_mask_beside_the_brain_is_flagged(person: Anatomy, scan: np.ndarray, axis: int, millimetres: float) -> None:
    volume = Volume(scan, person.affine)
    beside = np.roll(person.brain, round(millimetres / SPACING), axis)
    assert mask_offset(volume, person.brain, IDENTITY) < 3
    assert mask_offset(volume, beside, IDENTITY) == pytest.approx(12, abs=3)
    assert "mask beside the brain, mm" in flagged(figures_of(person, scan, beside))


def test_air_is_found_despite_padding_and_masking(person: Anatomy, scan: np.ndarray) -> None:
    """A constant was added to all intensities; then zeros were put around the head or in the corners."""
    shown = scan > 0.05
    for offset, expected in ((0.0, False), (0.7, True)):
        added = 500 * (scan + offset)
        for data in (added, np.where(shown, added, 0), np.pad(added[3:-3, 3:-3, 3:-3], 3)):
            assert ("air" in flagged(figures_of(person, data))) == expected


def test_the_air_of_the_harmonized_image_is_judged_too(person: Anatomy, scan: np.ndarray) -> None:
    spoilt = scan.copy()
    spoilt[:, :, -6:] = -50
    volume = Volume(spoilt, person.affine)
    ground = find_ground(volume)
    streaked = Volume(np.where(spoilt == -50, 0.4, scan), person.affine)
    assert flagged(describe_air(streaked, ground) | {"registration": 1}) == {"air, harmonized"}
    assert flagged(describe_air(ground.applied_to(volume), ground) | {"registration": 1}) == set()
