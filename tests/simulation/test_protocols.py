"""Signal equations agree with step-by-step magnetisation, and random protocols are within the range of scanners."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.simulation.protocols import (
    CANONICAL,
    SEQUENCES,
    InversionGradientEcho,
    InversionSpinEcho,
    Matter,
    SpinEcho,
    SpoiledGradientEcho,
    canonical_levels,
    random_scan,
)
from mmh_ray.simulation.tissues import ENHANCING, FLUID, GREY, LESION, NAMES, TISSUES, WHITE

pytestmark = pytest.mark.fast


def relaxed(magnetisation: np.ndarray, ms: float, t1_ms: np.ndarray) -> np.ndarray:
    """Longitudinal magnetisation after a wait."""
    return 1 - (1 - magnetisation) * np.exp(-ms / t1_ms)


@pytest.mark.parametrize(("ti_ms", "echoes", "flip"), [(900.0, 176, 9.0), (600.0, 80, 12.0), (1100.0, 240, 6.0)])
def test_an_inversion_gradient_echo_is_the_limit_of_its_trains(ti_ms: float, echoes: int, flip: float) -> None:
    matter, scan = Matter.typical(3.0), InversionGradientEcho(2400, ti_ms, 6.0, echoes, flip, te_ms=0.0)
    magnetisation = np.ones(len(TISSUES))
    for _ in range(40):
        magnetisation = relaxed(-scan.efficiency * magnetisation, ti_ms - echoes * 3.0, matter.t1_ms)
        for echo in range(echoes):
            if echo == echoes // 2:
                signal = np.abs(magnetisation) * np.sin(np.deg2rad(flip)) * matter.density
            magnetisation = relaxed(magnetisation * np.cos(np.deg2rad(flip)), 6.0, matter.t1_ms)
        magnetisation = relaxed(magnetisation, 2400 - ti_ms - echoes * 3.0, matter.t1_ms)
    np.testing.assert_allclose(scan.signal(matter, 1.0), signal, rtol=1e-6, atol=1e-9)


def test_a_spoiled_gradient_echo_is_brightest_at_the_ernst_angle() -> None:
    matter = Matter.typical(1.5)
    best = np.rad2deg(np.arccos(np.exp(-20 / matter.t1_ms[WHITE])))
    signals = [SpoiledGradientEcho(20, flip, 0.0).signal(matter, 1.0)[WHITE] for flip in (best - 1, best, best + 1)]
    assert np.argmax(signals) == 1


def test_a_spin_echo_that_waits_shows_the_proton_density() -> None:
    matter = Matter.typical(3.0)
    np.testing.assert_allclose(SpinEcho(1e6, 0.0).signal(matter, 1.0), matter.density, rtol=1e-6)


def test_flair_nulls_fluid_and_nothing_else() -> None:
    matter = Matter.typical(3.0)
    t1_ms, efficiency = matter.t1_ms[FLUID], 0.95
    null_ms = t1_ms * np.log((1 + efficiency) / (1 + efficiency * np.exp(-9000 / t1_ms)))
    signal = InversionSpinEcho(9000, null_ms, 100, efficiency).signal(matter, 1.0)
    assert signal[FLUID] < 1e-9
    assert min(signal[GREY], signal[WHITE], signal[LESION]) > 0.05


def test_a_weaker_transmit_field_is_a_smaller_flip_angle() -> None:
    matter = Matter.typical(3.0)
    for scan in (SpoiledGradientEcho(10, 20), InversionGradientEcho(2300, 900, 7.0, 176, 20)):
        other = type(scan)(**{**vars(scan), "flip": 14.0})
        np.testing.assert_allclose(scan.signal(matter, 0.7), other.signal(matter, 1.0), rtol=1e-12)


def test_the_unified_domain_has_the_documented_levels() -> None:
    t1w, t2w, flair, pdw = (canonical_levels(name) for name in SEQUENCES)
    assert (t1w[WHITE] - t1w[GREY]) / t1w[WHITE] >= 0.33
    assert t1w[FLUID] < 0.2 < t1w[GREY] < t1w[WHITE] < t1w[ENHANCING]
    assert t1w[GREY] < t1w[NAMES.index("thalamus")] < t1w[NAMES.index("pallidum")] < t1w[WHITE]
    assert t2w[WHITE] < t2w[GREY] < t2w[LESION] < t2w[FLUID] == pytest.approx(0.95)
    assert t2w[NAMES.index("pallidum")] < t2w[WHITE]
    assert flair[FLUID] < 0.1 < flair[WHITE] < flair[GREY] < flair[LESION]
    assert pdw[FLUID] < pdw[WHITE] < pdw[GREY]


def test_fluid_relaxes_alike_in_all_fields_and_tissue_more_slowly_in_higher_ones() -> None:
    fields = [Matter.typical(field) for field in (0.064, 1.5, 7.0)]
    fluid, grey = (np.array([matter.t1_ms[tissue] for matter in fields]) for tissue in (FLUID, GREY))
    np.testing.assert_allclose(fluid, 4300)
    assert (np.diff(grey) > 0).all()
    assert 1000 < grey[1] < 1250 < 1900 < grey[2] < 2200


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_random_protocols_are_usable_scans_of_their_sequence(sequence: str) -> None:
    rng = np.random.default_rng(0)
    signals = []
    for _ in range(200):
        scan = random_scan(sequence, rng)
        signals.append(scan.signal(Matter.typical(scan.field_t)))
    fluid, grey, white, lesion = np.array(signals)[:, [FLUID, GREY, WHITE, LESION]].T
    assert np.isfinite(signals).all()
    assert np.min(signals) >= 0
    if sequence == "T1w":
        assert (fluid < grey).all()
        assert (grey < white).all()
        assert np.quantile(grey / white, 0.05) < 0.5  # as the steepest of real protocols
        assert np.quantile(grey / white, 0.95) > 0.8
    elif sequence == "T2w":
        assert (white < grey).all()
        assert (grey < fluid).all()
    else:
        assert (white < grey).all()
    if sequence in ("T2w", "FLAIR"):
        assert (lesion > white).all()


def test_canonical_protocols_are_among_the_random_ones() -> None:
    for sequence, scan in CANONICAL.items():
        signal = scan.signal(Matter.typical(scan.field_t))
        drawn = [random_scan(sequence, np.random.default_rng(seed)) for seed in range(300)]
        ratios = [found[GREY] / found[WHITE] for found in (one.signal(Matter.typical(one.field_t)) for one in drawn)]
        assert min(ratios) < signal[GREY] / signal[WHITE] < max(ratios)
