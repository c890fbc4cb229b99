"""Simulates a scanner's effects besides contrast: fields, resolution, ringing, ghosts, noise, filters, grey levels.

Shapes: ``X Y Z`` the working grid.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mmh_ray.imaging.smoothing import FWHM_PER_SIGMA
from mmh_ray.simulation.anatomy import smooth_noise
from mmh_ray.simulation.deformation import axes_mm
from mmh_ray.simulation.people import Head
from mmh_ray.simulation.protocols import CANONICAL, Matter, Scan, canonical_levels
from mmh_ray.simulation.tissues import ODDITY, TISSUES, WHITE

_TRANSMIT = (0.6, 1.0, 1.4)
"""Relative transmit fields at which the signal is computed; it is interpolated between them."""


def canonical_image(head: Head, sequence: str, oddity: np.ndarray | None = None) -> np.ndarray:
    """The head in the unified domain, ``(X, Y, Z)`` float32 unit intensity: canonical contrast, no noise, no field.

    ``oddity`` ``(3,)``: density, T1 and T2 (ms at 3 T) of this person's odd tissue.
    """
    levels = canonical_levels(sequence)
    if oddity is not None:
        scan = CANONICAL[sequence]
        typical = Matter.typical(3.0)
        with_oddity = _with_oddity(typical, oddity)
        level_per_signal = float(levels[0] / scan.signal(typical)[0])
        odd_signal = scan.signal(with_oddity)[ODDITY]
        levels[ODDITY] = odd_signal * level_per_signal
    return _mixed(head, levels) * head.texture


def render(head: Head, scan: Scan, rng: np.random.Generator, spacing_mm: float, oddity: np.ndarray) -> np.ndarray:
    """Simulate the scanner's image of a head: ``(X, Y, Z)`` float32, not negative, in arbitrary units."""
    typical = Matter.typical(scan.field_t)
    matter = _with_oddity(typical, oddity).varied(rng)
    image = _excited(head, scan, matter, rng, spacing_mm)
    image = image * head.texture
    white = max(float(scan.signal(matter)[WHITE]), 1e-6)
    image = image / white
    image = _ringing(image, rng)
    image = _resolution(image, scan.sequence, rng, spacing_mm)
    image = _ghost(image, rng)
    field = _receive_field(image.shape, scan.field_t, rng, spacing_mm)
    image = _noise(image * field, rng, spacing_mm)
    image = _filtered(image, rng)
    return _levels(image, rng)


def random_oddity(rng: np.random.Generator) -> np.ndarray:
    """``(3,)`` density, T1 and T2 in ms at 3 T of a random tissue unlike any in an atlas."""
    density = rng.uniform(0.65, 1.0)
    t1_ms = _log_uniform(rng, 500, 3000)
    t2_ms = rng.uniform(40, 400)
    return np.array([density, t1_ms, t2_ms])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between two positive ones, uniform in its logarithm."""
    logarithm = rng.uniform(np.log(low), np.log(high))
    return float(np.exp(logarithm))


def _with_oddity(matter: Matter, oddity: np.ndarray) -> Matter:
    """The tissues with this person's odd tissue."""
    density = matter.density.copy()
    t1_ms = matter.t1_ms.copy()
    t2_ms = matter.t2_ms.copy()
    density[ODDITY], t1_ms[ODDITY], t2_ms[ODDITY] = oddity
    return Matter(density, t1_ms, t2_ms)


def _mixed(head: Head, levels: np.ndarray) -> np.ndarray:
    """Sum over the tissues of level times share."""
    image = np.zeros(head.brain.shape, np.float32)
    for channel in range(len(TISSUES)):
        share = head.fractions[channel]
        if levels[channel] and share.any():
            image += np.float32(levels[channel]) * share
    return image


def _excited(head: Head, scan: Scan, matter: Matter, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """Signal under a transmit field that varies in space: quadratic interpolation between three exact values."""
    weakest, nominal_transmit, strongest = _TRANSMIT
    nominal = _mixed(head, scan.signal(matter, nominal_transmit))
    most = 0.04 + 0.03 * scan.field_t
    strength = rng.uniform(0, most)
    if strength < 0.02:
        return nominal
    weak = _mixed(head, scan.signal(matter, weakest))
    strong = _mixed(head, scan.signal(matter, strongest))
    length_mm = rng.uniform(60, 110)
    field = smooth_noise(rng, nominal.shape, length_mm / spacing_mm)
    deviation = np.clip(strength * field, -0.4, 0.4)
    offset = deviation / 0.4  # -1 at the weakest, 1 at the strongest
    linear = offset * (strong - weak) / 2
    curvature = (weak + strong) / 2 - nominal
    signal = nominal + linear + offset**2 * curvature
    return np.maximum(signal, 0)


def _receive_field(shape: tuple[int, ...], field_t: float, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """Sensitivity of the coils: smooth, brighter or darker in the middle, varying up to threefold at high field."""
    up_to_3t = min(field_t, 3.0)
    beyond_3t = max(field_t - 3, 0)
    strongest = 0.12 + 0.05 * up_to_3t + 0.03 * beyond_3t
    strength = rng.uniform(0, strongest)
    wide_mm = rng.uniform(70, 130)
    wide = smooth_noise(rng, shape, wide_mm / spacing_mm)
    narrow_mm = rng.uniform(40, 60)
    narrow = smooth_noise(rng, shape, narrow_mm / spacing_mm)
    squares = [(axis_mm / 90) ** 2 for axis_mm in axes_mm(shape, spacing_mm)]  # 1 is 90 mm from the middle
    across, ahead, up = squares
    squared_distance = across[:, None, None] + ahead[:, None] + up
    curvature = rng.normal(0, 1.0)
    dome = curvature * strength * squared_distance
    weak = 0.2 * strength
    log_field = strength * wide + weak * narrow + dome
    return np.exp(log_field).astype(np.float32)


def _resolution(image: np.ndarray, sequence: str, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """In-plane point spread, plus slice profile and resampling along one axis; both are mild in most scans."""
    slice_axis = int(rng.integers(3))
    in_plane_mm = rng.uniform(0.3, 1.8)
    share_of_thin = 0.8 if sequence == "T1w" else 0.5
    is_thin = rng.random() < share_of_thin
    thickness_mm = rng.uniform(0.8, 1.8) if is_thin else rng.uniform(2.0, 6.5)
    sigma = np.full(3, in_plane_mm / FWHM_PER_SIGMA / spacing_mm)
    sigma[slice_axis] = 0.0
    image = ndimage.gaussian_filter(image, sigma)
    if thickness_mm <= 0.9 * spacing_mm:
        return image
    # A slice profile of this width is close to a Gaussian of the same variance; slices are one thickness apart.
    profile_sigma = 0.35 * thickness_mm / spacing_mm
    image = ndimage.gaussian_filter1d(image, profile_sigma, axis=slice_axis)
    if thickness_mm <= 1.2 * spacing_mm:
        return image
    length = image.shape[slice_axis]
    step = thickness_mm / spacing_mm
    first_slice = rng.uniform(0, step)
    slices = np.arange(first_slice, length, step)
    sliced = _interpolated(image, slices, slice_axis)
    places = (np.arange(length) - slices[0]) / step
    places = np.clip(places, 0, len(slices) - 1)
    return _interpolated(sliced, places, slice_axis)


def _interpolated(image: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at places along one axis."""
    last = image.shape[axis] - 1
    low = np.floor(places).astype(int)
    low = np.clip(low, 0, last)
    high = np.minimum(low + 1, last)
    shape = [1, 1, 1]
    shape[axis] = len(places)
    weight = (places - low).reshape(shape).astype(np.float32)
    image_low = np.take(image, low, axis)
    image_high = np.take(image, high, axis)
    return image_low * (1 - weight) + image_high * weight


def _ringing(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Truncate k-space along one axis (partial Fourier, few phase encodings): blur and ringing at edges."""
    if rng.random() > 0.2:
        return image
    axis = int(rng.integers(3))
    spectrum = np.fft.rfft(image, axis=axis)
    share_kept = rng.uniform(0.6, 0.95)
    kept = int(np.ceil(share_kept * spectrum.shape[axis]))
    cut_off = [slice(None)] * 3
    cut_off[axis] = slice(kept, None)
    spectrum[tuple(cut_off)] = 0
    ringing = np.fft.irfft(spectrum, n=image.shape[axis], axis=axis)
    return np.maximum(ringing, 0).astype(np.float32)


def _ghost(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a faint copy shifted along one axis, as caused by motion and pulsation."""
    if rng.random() > 0.15:
        return image
    axis = int(rng.integers(3))
    most = image.shape[axis] // 2
    shift = int(rng.integers(4, most + 1))
    strength = rng.uniform(0.005, 0.05)
    ghost = np.roll(image, shift, axis=axis)
    return image + strength * ghost


def _noise(image: np.ndarray, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """Add Rician noise whose level varies in space, as with parallel imaging."""
    level = _log_uniform(rng, 0.004, 0.07)
    wander = smooth_noise(rng, image.shape, 60 / spacing_mm)
    unevenness = rng.uniform(0, 0.3)
    local_level = level * np.exp(unevenness * wander)
    real = local_level * rng.standard_normal(image.shape, np.float32)
    imaginary = local_level * rng.standard_normal(image.shape, np.float32)
    noisy = np.hypot(image + real, imaginary)
    return noisy.astype(np.float32)


def _filtered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a scanner's filter (smoothing, edge enhancement, median or none) and sometimes a gamma curve."""
    kind = rng.random()
    if kind < 0.08:
        image = ndimage.median_filter(image, size=3)
    elif kind < 0.16:
        sigma = rng.uniform(0.3, 0.6)
        image = ndimage.gaussian_filter(image, sigma)
    elif kind < 0.26:
        edges = image - ndimage.gaussian_filter(image, 1.0)
        strength = rng.uniform(0.2, 0.7)
        image = np.maximum(image + strength * edges, 0)
    if rng.random() < 0.15:
        top = max(float(np.quantile(image, 0.999)), 1e-6)
        gamma = np.exp(rng.normal(0, 0.2))
        relative = np.maximum(image / top, 0)
        image = top * relative**gamma
    return image


def _levels(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round to the grey levels of a stored file, for a quarter of the scans."""
    if rng.random() > 0.25:
        return image.astype(np.float32)
    brightest = float(np.quantile(image, 0.9995))
    step = brightest / rng.integers(120, 256)
    levels = np.round(image / max(step, 1e-6))
    return (levels * step).astype(np.float32)
