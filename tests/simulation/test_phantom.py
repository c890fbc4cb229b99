"""Phantoms: the signal equations by hand, contrast of every site, truth without noise, Rician background."""

from __future__ import annotations

from dataclasses import replace
from math import cos, exp, pi, radians, sin, sqrt

import numpy as np
import pytest

from mmh_ray.simulation.anatomy import Anatomy, Person, simulate_anatomy
from mmh_ray.simulation.phantom import (
    CANONICAL,
    SEQUENCES,
    SITES,
    Scanner,
    canonical,
    random_scanner,
    render,
    tissue_levels,
    tissue_signal,
)

pytestmark = pytest.mark.fast

WHITE_PD, WHITE_T1, WHITE_T2 = 0.70, 840.0, 72.0


def test_spoiled_gradient_echo_by_hand() -> None:
    e1, angle = exp(-20 / WHITE_T1), radians(30)
    expected = WHITE_PD * sin(angle) * (1 - e1) / (1 - cos(angle) * e1)
    assert tissue_signal(Scanner("x", 3.0, tr_t1=20, flip=30), "T1w")[2] == pytest.approx(expected)


def test_spin_echo_by_hand() -> None:
    expected = WHITE_PD * (1 - exp(-4000 / WHITE_T1)) * exp(-80 / WHITE_T2)
    assert tissue_signal(Scanner("x", 3.0, tr_t2=4000, te=80), "T2w")[2] == pytest.approx(expected)


def test_field_strength_stretches_the_t1_of_tissue_but_not_of_fluid() -> None:
    low, high = (tissue_signal(Scanner("x", field), "T2w") for field in (0.375, 3.0))  # cube root of 1/8 is 1/2
    assert low[0] == pytest.approx(high[0])
    assert low[2] == pytest.approx(WHITE_PD * (1 - exp(-5000 / (WHITE_T1 / 2))) * exp(-90 / WHITE_T2))


@pytest.mark.parametrize("scanner", [*SITES, CANONICAL], ids=lambda scanner: scanner.name)
def test_contrast_of_every_site(scanner: Scanner) -> None:
    fluid, grey, white, _ = tissue_signal(scanner, "T1w")
    assert white > grey > fluid > 0
    fluid, grey, white, lesion = tissue_signal(scanner, "T2w")
    assert fluid > grey > white > 0
    assert lesion > white


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_voxel_of_nothing_but_fluid_has_its_canonical_level(sequence: str) -> None:
    fluid = np.zeros((4, 3, 3, 3), np.float32)
    fluid[0] = 1
    found = canonical(Anatomy(fluid, np.zeros((3, 3, 3), np.float32), np.eye(4)), sequence, 4.0)
    np.testing.assert_allclose(found, tissue_levels(CANONICAL, sequence)[0], rtol=1e-6)


def test_sites_differ_and_are_not_the_canonical_one() -> None:
    contrasts = [
        tuple(np.round(tissue_signal(site, "T1w")[:2] / tissue_signal(site, "T1w")[2], 4))
        for site in (*SITES, CANONICAL)
    ]
    assert len(set(contrasts)) == len(SITES) + 1
    assert len({site.name for site in SITES}) == len(SITES)


@pytest.mark.parametrize("sequence", ["FLAIR", "t1w", ""])
def test_unknown_sequence_is_refused_by_name(sequence: str) -> None:
    with pytest.raises(ValueError, match=f"sequence '{sequence}'; expected one of"):
        tissue_signal(CANONICAL, sequence)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_canonical_is_deterministic_and_linear_in_the_fractions(
    anatomy: Anatomy, spacing: float, sequence: str
) -> None:
    image = canonical(anatomy, sequence, spacing)
    np.testing.assert_array_equal(image, canonical(anatomy, sequence, spacing))
    signal = tissue_signal(CANONICAL, sequence)
    expected = np.tensordot(signal / signal[2 if sequence == "T1w" else 1], anatomy.fractions, axes=1)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert not image[anatomy.fractions.sum(0) == 0].any()


def test_background_is_rician(anatomy: Anatomy, spacing: float, rng: np.random.Generator) -> None:
    noise, gain = 0.05, 200.0
    image = render(anatomy, replace(CANONICAL, noise=noise, gain=gain), "T1w", rng, spacing)
    background = image[anatomy.fractions.sum(0) == 0] / gain
    assert len(background) > 5000
    assert background.mean() == pytest.approx(noise * sqrt(pi / 2), rel=0.03)  # Rayleigh: where there is no signal
    assert background.std() == pytest.approx(noise * sqrt(2 - pi / 2), rel=0.05)


def test_noise_in_tissue_has_the_scanners_level(
    anatomy: Anatomy, clean: np.ndarray, spacing: float, rng: np.random.Generator
) -> None:
    image = render(anatomy, replace(CANONICAL, noise=0.03), "T1w", rng, spacing)
    bright = clean > 0.6
    assert (image - clean)[bright].std() == pytest.approx(0.03, rel=0.1)


def test_noise_is_a_share_of_the_brightest_tissue(anatomy: Anatomy, spacing: float) -> None:
    """In T2w that is fluid, not grey matter, to which the intensities are scaled."""
    truth, noisy = (
        render(anatomy, replace(CANONICAL, noise=noise), "T2w", np.random.default_rng(0), spacing)
        for noise in (0, 0.03)
    )
    csf, gm, *_ = tissue_signal(CANONICAL, "T2w")
    assert (noisy - truth)[truth > 0.5].std() == pytest.approx(0.03 * csf / gm, rel=0.1)


def test_same_generator_state_gives_the_same_scan_and_another_another(anatomy: Anatomy, spacing: float) -> None:
    first, again, other = (render(anatomy, SITES[0], "T1w", np.random.default_rng(seed), spacing) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_scans_are_finite_quantised_and_not_negative(
    anatomy: Anatomy, spacing: float, sequence: str, rng: np.random.Generator
) -> None:
    image = render(anatomy, SITES[1], sequence, rng, spacing)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert len(np.unique(image)) <= SITES[1].levels + 1


def test_gain_is_the_unit_of_a_scan(
    anatomy: Anatomy, clean: np.ndarray, spacing: float, rng: np.random.Generator
) -> None:
    np.testing.assert_allclose(
        render(anatomy, replace(CANONICAL, gain=7), "T1w", rng, spacing), 7 * clean, rtol=1e-5, atol=1e-30
    )


def test_gamma_is_the_exponent(anatomy: Anatomy, clean: np.ndarray, spacing: float, rng: np.random.Generator) -> None:
    image = render(anatomy, replace(CANONICAL, gamma=1.5), "T1w", rng, spacing)
    np.testing.assert_allclose(image, clean**1.5, atol=1e-5)


def test_scalp_adds_its_signal_and_nothing_else_does(anatomy: Anatomy, clean: np.ndarray, spacing: float) -> None:
    headed = simulate_anatomy(Person(1, scalp=True), spacing)
    added = canonical(headed, "T1w", spacing) - clean
    share = headed.scalp > 0.05
    ratio = added[share] / headed.scalp[share]
    assert 0.4 <= ratio.min() <= ratio.max() <= 1.8
    assert np.ptp(ratio) < 1e-3
    np.testing.assert_array_equal(added[headed.scalp == 0], 0)


def test_random_scanners_are_reproducible_and_varied() -> None:
    drawn = [random_scanner(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
