"""Simulates the scanners of phantom archives: two simple signal equations (T1w and T2w) and a site's other effects.

The ground truth is the canonical noise-free rendering. `mmh-base` and the brain extractor are trained with the scanners
of :mod:`mmh_ray.simulation.protocols` instead, which cover all sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.smoothing import FWHM_PER_SIGMA
from mmh_ray.simulation.anatomy import Anatomy, smooth_noise

SEQUENCES = ("T1w", "T2w")
"""Sequences that can be simulated."""

_PROTON_DENSITY = np.array([1.0, 0.82, 0.70, 0.85])
_T1_MS_AT_3T = np.array([4000.0, 1330.0, 840.0, 1500.0])
_T1_GROWTH = np.array([0.0, 1 / 3, 1 / 3, 1 / 3])
_T2_MS = np.array([1500.0, 95.0, 72.0, 160.0])


@dataclass(frozen=True)
class Scanner:
    """Everything that determines how a site's images look: acquisition, receive path, reconstruction.

    T1w is a spoiled gradient echo (``tr_t1`` ms, ``flip`` degrees), T2w a spin echo (``tr_t2``, ``te`` ms).
    """

    name: str
    field_strength_t: float = 3.0
    tr_t1: float = 18.0
    flip: float = 25.0
    tr_t2: float = 5000.0
    te: float = 90.0
    gamma: float = 1.0
    """Exponent of the reconstruction's intensity curve."""
    bias: float = 0.0
    """Standard deviation of the logarithm of the smooth receive field."""
    blur_mm: float = 0.0
    """Full width at half maximum of the point spread."""
    noise: float = 0.0
    """Rician noise, as a share of the brightest tissue's signal (as BrainWeb counts it: Cocosco et al., 1997)."""
    levels: int = 0
    """Grey levels of the stored file; 0 stores floating point."""
    gain: float = 1.0
    """Arbitrary units per signal unit."""
    manufacturer: str = "Simulated"


CANONICAL = Scanner("canonical", flip=30.0)
"""The noise-free target style of the simulation."""

SITES = (
    Scanner("alder", 3.0, 9.0, 12.0, 4200, 102, 0.85, 0.04, 1.8, 0.022, 255, 900.0, "Siemens"),
    Scanner("birch", 1.5, 24.0, 35.0, 3000, 80, 1.25, 0.07, 2.5, 0.032, 255, 310.0, "GE"),
    Scanner("cedar", 3.0, 14.0, 20.0, 6500, 125, 1.45, 0.055, 2.1, 0.026, 4095, 1500.0, "Philips"),
    Scanner("doum", 1.5, 30.0, 28.0, 2400, 112, 0.70, 0.09, 1.6, 0.038, 255, 120.0, "Siemens"),
    Scanner("elm", 7.0, 12.0, 16.0, 7000, 60, 1.10, 0.10, 1.3, 0.020, 4095, 2400.0, "Siemens"),
    Scanner("fir", 1.0, 22.0, 30.0, 2800, 95, 0.95, 0.05, 2.9, 0.043, 255, 60.0, "Hitachi"),
    Scanner("gum", 3.0, 7.5, 9.0, 3600, 140, 1.30, 0.065, 1.9, 0.024, 4095, 700.0, "Canon"),
    Scanner("hazel", 1.5, 18.0, 25.0, 5200, 85, 0.80, 0.08, 2.3, 0.031, 1023, 400.0, "GE"),
)
"""The sites of the phantom archive. The training simulation draws random scanners instead of these."""


def tissue_signal(scanner: Scanner, sequence: str) -> np.ndarray:
    """Signal of CSF, GM, WM and lesion, ``(4,)``, in arbitrary units.

    T1w: ``PD sin(a) (1-E1) / (1 - cos(a) E1)``, ``E1 = exp(-TR/T1)``. T2w: ``PD (1 - exp(-TR/T1)) exp(-TE/T2)``.
    T1 grows with the cube root of the field strength; that of fluid does not (Rooney et al., 2007).
    """
    relative_field = scanner.field_strength_t / 3.0
    t1_ms = _T1_MS_AT_3T * relative_field**_T1_GROWTH
    if sequence == "T1w":
        e1 = np.exp(-scanner.tr_t1 / t1_ms)
        angle = np.deg2rad(scanner.flip)
        driven = 1 - np.cos(angle) * e1
        return _PROTON_DENSITY * np.sin(angle) * (1 - e1) / driven
    if sequence == "T2w":
        recovered = 1 - np.exp(-scanner.tr_t2 / t1_ms)
        decay = np.exp(-scanner.te / _T2_MS)
        return _PROTON_DENSITY * recovered * decay
    raise ValueError(f"sequence {sequence!r}; expected one of {SEQUENCES}. Phantoms have no other signal equation.")


def tissue_levels(scanner: Scanner, sequence: str) -> np.ndarray:
    """:func:`tissue_signal` relative to the signal of white matter in T1w, of grey matter in T2w."""
    signal = tissue_signal(scanner, sequence)
    _, grey, white, _ = signal
    return signal / float(white if sequence == "T1w" else grey)


def render(
    anatomy: Anatomy, scanner: Scanner, sequence: str, rng: np.random.Generator, spacing_mm: float
) -> np.ndarray:
    """Simulate the scanner's image of an anatomy: ``(I, J, K)`` float32, not negative.

    Signal → gamma → point spread → receive field → Rician noise → grey levels.
    """
    levels = tissue_levels(scanner, sequence)
    image = np.einsum("t,txyz->xyz", levels, anatomy.fractions) + _scalp_signal(anatomy, rng)
    image = np.maximum(image, 0) ** scanner.gamma
    if scanner.blur_mm > 0:
        image = ndimage.gaussian_filter(image, scanner.blur_mm / FWHM_PER_SIGMA / spacing_mm)
    if scanner.bias > 0:
        log_field = scanner.bias * smooth_noise(rng, image.shape, 80 / spacing_mm)
        image = image * np.exp(log_field)
    if scanner.noise > 0:
        brightest = float(levels[:3].max()) ** scanner.gamma
        real, imaginary = rng.normal(0, scanner.noise * brightest, (2, *image.shape)).astype(np.float32)
        image = np.hypot(image + real, imaginary)
    if scanner.levels:
        step = image.max() / scanner.levels
        image = np.round(image / step) * step
    return (image * scanner.gain).astype(np.float32)


def canonical(anatomy: Anatomy, sequence: str, spacing_mm: float) -> np.ndarray:
    """The noise-free rendering in the canonical style, ``(I, J, K)`` float32."""
    unused = np.random.default_rng(0)  # the canonical scanner has no noise and no field to draw
    return render(anatomy, CANONICAL, sequence, unused, spacing_mm)


def noise_free(scanner: Scanner) -> Scanner:
    """The scanner without noise, bias field and grey levels: only contrast and sharpness remain."""
    return replace(scanner, bias=0.0, noise=0.0, levels=0)


def random_scanner(rng: np.random.Generator) -> Scanner:
    """A scanner drawn from wide ranges, for training."""
    return Scanner(
        name="random",
        field_strength_t=float(rng.choice([1.0, 1.5, 3.0, 7.0])),
        tr_t1=rng.uniform(6, 35),
        flip=rng.uniform(9, 40),
        tr_t2=rng.uniform(2000, 8000),
        te=rng.uniform(55, 145),
        gamma=float(np.exp(rng.normal(0, 0.3))),
        bias=rng.uniform(0, 0.06),
        blur_mm=rng.uniform(0.5, 3.5),
        noise=rng.uniform(0.005, 0.05),
    )


def _scalp_signal(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray | float:
    """Signal of the scalp, if there is one, with random brightness."""
    if not anatomy.scalp.any():
        return 0.0
    return anatomy.scalp * rng.uniform(0.4, 1.8)
