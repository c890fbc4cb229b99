"""Brings a scan to the working grid: mask, registration, resampling through the affine, bias field, unit intensity."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmh_ray.config import GridConfig, PrepareConfig
from mmh_ray.errors import DataError, MaskError
from mmh_ray.imaging.grid import share_held, to_grid, working_affine
from mmh_ray.imaging.ground import Ground, find_ground
from mmh_ray.imaging.intensity import Scaling, bias_gain, quantile_function, robust_scaling, tissue_quantiles
from mmh_ray.imaging.mask import Brain, find_brain, on_grid_of, register_found
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.resolution import describe
from mmh_ray.imaging.volume import Volume
from mmh_ray.threads import one_thread

UPRIGHT_DEGREES = 5.0
"""Largest rotation of a head at which the working grid keeps the scan's world axes.

Upright phantoms of random shape register with up to 4.4 degrees. So a smaller tilt cannot be distinguished from the
person's shape. With the scan's axes, a scan that has the grid's spacing is not blurred by interpolation.
"""


_SKULL = {"keep": "kept in the output, masked from the model", "strip": "removed"}
"""How the steps describe the choices of `prepare.skull`."""
_LISTED_VALUES = 5
"""Fill values that the steps list."""


@dataclass(frozen=True)
class Prepared:
    """A scan on the working grid (isotropic; world axes, or the template's axes if the head is tilted).

    Attributes
    ----------
    image:
        ``(X, Y, Z)`` float32 unit intensity, bias-corrected, zero outside the mask: what the model sees.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    affine:
        ``(4, 4)`` working voxel indices to the scan's millimetres.
    brain:
        ``(I, J, K)`` bool, the mask on the scan's own grid.
    registration:
        Position of the template in the scan; None if it was neither requested nor needed to find the brain.
    scaling:
        The map from the scan's units to unit intensity.
    held:
        Part of the brain that lies inside the grid.
    steps:
        The processing steps in order, for the sidecar.
    ground:
        The scan's zero level and its fill.
    gain:
        ``(X, Y, Z)`` float32 factor by which N4 multiplied the scan above its zero; ones without N4.
    given:
        Whether the mask came with the scan.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    registration: Registration | None
    scaling: Scaling
    held: float
    steps: tuple[str, ...]
    ground: Ground
    gain: np.ndarray
    given: bool

    @property
    def stripped(self) -> bool:
        """Whether the skull was already removed."""
        return self.ground.stripped

    @property
    def quantiles(self) -> np.ndarray:
        """``(257,)`` quantile function of the brain's unit intensities."""
        return quantile_function(self.image[self.mask])

    @property
    def tissues(self) -> np.ndarray:
        """``(257,)`` quantile function after slight smoothing (:func:`mmh_ray.imaging.intensity.tissue_quantiles`)."""
        return tissue_quantiles(self.image, self.mask)


@one_thread()
def prepare_volume(
    volume: Volume, mask: np.ndarray | Volume | None, grid: GridConfig, settings: PrepareConfig
) -> Prepared:
    """Bring a scan to the working grid.

    Parameters
    ----------
    volume:
        The scan on its native grid.
    mask:
        ``(I, J, K)`` brain mask on the native grid; a Volume on another grid is resampled through the affines. None: a
        mask is estimated.

    Raises
    ------
    DataError
        If the mask does not match the scan or is empty, or if the scan has no contrast inside it.
    """
    is_given = mask is not None
    is_resampled = False
    ground = find_ground(volume)
    volume = ground.applied_to(volume)
    if isinstance(mask, Volume):
        mask, is_resampled = on_grid_of(volume, mask)
    brain = _brain(volume, mask, ground, settings)
    axes = _tilt(brain.registration) if settings.register else None
    affine = working_affine(volume.affine, brain.mask, grid, axes)
    signal = volume.data - ground.floor if ground.floor else volume.data
    resampled = to_grid(signal, volume.affine, affine, grid.shape)
    inside = to_grid(brain.mask.astype(np.float32), volume.affine, affine, grid.shape) > 0.5
    if not inside.any():
        expected = "a brain larger than a few voxels"
        raise MaskError("a mask without a working voxel", expected, "Check the mask and the affine.")
    gain = np.ones(grid.shape, np.float32)
    if settings.n4:
        gain = bias_gain(resampled, inside, (grid.spacing_mm,) * 3, settings.n4_iterations)
    corrected = resampled * gain
    unit = _scaling(corrected, inside, settings, is_given)
    scaling = Scaling(unit.low + ground.floor, unit.high + ground.floor)
    steps = (
        _mask_step(is_given, is_resampled),
        _neck_step(brain.neck_mm, settings),
        f"skull: {'skipped, already removed' if ground.stripped else _SKULL[settings.skull]}",
        _registration_step(brain.registration, settings),
        describe(volume, brain.mask),
        f"resampled: {grid.spacing_mm:g} mm {'RAS' if axes is None else 'template axes'} {tuple(grid.shape)}",
        bias_step(settings),
        f"unit intensity: ({scaling.low:g}, {scaling.high:g}) -> (0, 1)",
        *_fill_steps(ground),
    )
    return Prepared(
        image=np.clip(unit.apply(corrected), 0, 2) * inside,
        mask=inside,
        affine=affine,
        brain=brain.mask,
        registration=brain.registration,
        scaling=scaling,
        held=share_held(brain.mask, volume.affine, affine, grid.shape),
        steps=steps,
        ground=ground,
        gain=gain,
        given=is_given,
    )


def _scaling(image: np.ndarray, inside: np.ndarray, settings: PrepareConfig, given: bool) -> Scaling:
    """The scaling to unit intensity; if there is no contrast inside a user's mask, the error is a MaskError."""
    try:
        return robust_scaling(image, inside, settings.upper_percentile)
    except DataError as error:
        if given:
            raise MaskError(error.received, error.expected, error.remedy) from error
        raise


def _brain(volume: Volume, mask: np.ndarray | None, ground: Ground, settings: PrepareConfig) -> Brain:
    """The user's or an estimated mask, with the registration if it was requested or needed to find the brain."""
    if mask is not None and mask.shape != volume.data.shape:
        expected = f"the scan's shape {volume.data.shape}"
        raise MaskError(f"mask of shape {mask.shape}", expected, "Resample the mask to its scan.")
    brain = find_brain(volume, settings.crop_neck, ground) if mask is None else Brain(mask)
    if ground.holes is not None:
        brain = replace(brain, mask=brain.mask & ~ground.holes)
    if mask is None and not brain.mask.any():
        remedy = "Check the scan; give a brain mask if it shows one."
        raise DataError("a scan in which no brain was found", "an MRI of a head", remedy)
    if not brain.mask.any():
        remedy = "Check the mask or leave it out to have one estimated."
        raise MaskError("an empty mask", "a mask that covers the brain", remedy)
    if not settings.register:
        return brain
    return replace(brain, registration=brain.registration or register_found(volume, brain.mask, ground.floor))


def _fill_steps(ground: Ground) -> tuple[str, ...]:
    """The step that excludes fill, if the scan has any."""
    if ground.fill is None:
        return ()
    share = ground.fill.mask.mean()
    values = ", ".join(f"{value:g}" for value in ground.fill.values[:_LISTED_VALUES])
    return (f"fill: {share:.1%} of the voxels treated as background (values {values})",)


def _tilt(registration: Registration | None) -> np.ndarray | None:
    """``(3, 3)`` the template's axes in the scan if the head is tilted enough to turn the grid, else None."""
    if registration is None or registration.degrees <= UPRIGHT_DEGREES:
        return None
    return registration.rotation


def _mask_step(is_given: bool, is_resampled: bool) -> str:
    if is_resampled:
        return "mask: given, resampled"
    return "mask: given" if is_given else "mask: estimated"


def _neck_step(neck_mm: float | None, settings: PrepareConfig) -> str:
    if neck_mm is None:
        return "neck: skipped, the mask leaves it out"
    if not settings.crop_neck:
        return "neck: not asked for"
    if neck_mm:
        return f"neck: {neck_mm:.0f} mm left out"
    return "neck: skipped, the field of view ends with the head"


def bias_step(settings: PrepareConfig) -> str:
    """The text for the bias field in :attr:`Prepared.steps`."""
    if not settings.n4:
        return "bias field: not asked for"
    iterations = tuple(settings.n4_iterations)
    return f"bias field: N4 {iterations}"


def _registration_step(registration: Registration | None, settings: PrepareConfig) -> str:
    if registration is None:
        return "registration: not asked for"
    if not settings.register:
        return f"registration: only to find the brain ({registration.method}, quality {registration.quality:.2f})"
    if registration.method == "given space":
        return f"registration: skipped, already in the template's space (quality {registration.quality:.2f})"
    tilt = f"head tilted by {registration.degrees:.1f} degrees"
    return f"registration: {registration.method}, quality {registration.quality:.2f}, {tilt}"
