"""From any scan to the working grid: mask, registration, orientation, resampling through the affine, bias field, unit
intensity."""

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
"""Rotation of a head up to which the working grid keeps the scan's world axes.

Upright phantoms of random shape register with up to 4.4 degrees, so less is no tilt that could be told from a person's
own shape; and a scan of the grid's own spacing and axes is then not blurred by interpolation.
"""


@dataclass(frozen=True)
class Prepared:
    """A scan on the working grid (isotropic; RAS axes, of the template where the head is tilted).

    Attributes
    ----------
    image:
        ``(X, Y, Z)`` float32 unit intensity, bias-corrected, zero outside the mask: what the model sees.
    source:
        ``(X, Y, Z)`` float32 unit intensity, neither corrected nor masked: the guide of the detail projection.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    affine:
        ``(4, 4)`` working voxel indices to the scan's millimetres.
    brain:
        ``(I, J, K)`` bool, the mask on the scan's own grid.
    stripped:
        Whether the scan came without its skull.
    registration:
        How the template lies in the scan; None where none was asked for, nor needed to find the brain.
    scaling:
        From the scan's units to unit intensity, by which both images were made.
    held:
        Part of the brain that lies inside the grid.
    steps:
        What was done, in order, for the sidecar.
    ground:
        What the scan's zero is, and where it holds none.
    gain:
        ``(X, Y, Z)`` float32 by which N4 multiplied the scan above its zero; ones where it was not asked for.
    given:
        Whether the mask came with the scan.
    """

    image: np.ndarray
    source: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    stripped: bool
    registration: Registration | None
    scaling: Scaling
    held: float
    steps: tuple[str, ...]
    ground: Ground
    gain: np.ndarray
    given: bool

    @property
    def quantiles(self) -> np.ndarray:
        """``(257,)`` quantile function of the brain's unit intensities."""
        return quantile_function(self.image[self.mask])

    @property
    def tissues(self) -> np.ndarray:
        """``(257,)`` the same after a little smoothing: see :func:`mmh_ray.imaging.intensity.tissue_quantiles`."""
        return tissue_quantiles(self.image, self.mask)


@one_thread()
def prepare_volume(
    volume: Volume, mask: np.ndarray | Volume | None, grid: GridConfig, settings: PrepareConfig
) -> Prepared:
    """Bring a scan to the working grid.

    Parameters
    ----------
    volume:
        The scan at its native grid.
    mask:
        ``(I, J, K)`` brain mask at the native grid; a volume on another grid is resampled through the affines; None
        estimates one.

    Raises
    ------
    DataError
        If the mask does not fit the scan, is empty, or leaves the scan without contrast.
    """
    is_given = mask is not None
    is_resampled = False
    ground = find_ground(volume)
    volume = ground.lay(volume)
    if isinstance(mask, Volume):
        mask, is_resampled = on_grid_of(volume, mask)
    brain = _brain(volume, mask, ground, settings)
    axes = _tilt(brain.registration) if settings.register else None
    affine = working_affine(volume.affine, brain.mask, grid, axes)
    signal = volume.data - ground.floor if ground.floor else volume.data
    source = to_grid(signal, volume.affine, affine, grid.shape)
    inside = to_grid(brain.mask.astype(np.float32), volume.affine, affine, grid.shape) > 0.5
    if not inside.any():
        expected = "a brain larger than a few voxels"
        raise MaskError("a mask without a working voxel", expected, "Check the mask and the affine.")
    gain = np.ones(grid.shape, np.float32)
    if settings.n4:
        gain = bias_gain(source, inside, (grid.spacing_mm,) * 3, settings.n4_iterations)
    corrected = source * gain
    unit = _scaling(corrected, inside, settings, is_given)
    scaling = Scaling(unit.low + ground.floor, unit.high + ground.floor)
    steps = (
        _mask_step(is_given, is_resampled),
        _neck_step(brain.neck_mm, settings),
        f"skull: {'skipped, already removed' if brain.stripped else _SKULL[settings.skull]}",
        _registration_step(brain.registration, settings),
        describe(volume, brain.mask),
        f"resampled: {grid.spacing_mm:g} mm {'RAS' if axes is None else 'template axes'} {tuple(grid.shape)}",
        bias_step(settings),
        f"unit intensity: ({scaling.low:g}, {scaling.high:g}) -> (0, 1)",
        *_fill_steps(ground),
    )
    return Prepared(
        image=np.clip(unit.apply(corrected), 0, 2) * inside,
        source=unit.apply(source),
        mask=inside,
        affine=affine,
        brain=brain.mask,
        stripped=brain.stripped,
        registration=brain.registration,
        scaling=scaling,
        held=share_held(brain.mask, volume.affine, affine, grid.shape),
        steps=steps,
        ground=ground,
        gain=gain,
        given=is_given,
    )


_NAMED_VALUES = 5


def _scaling(image: np.ndarray, inside: np.ndarray, settings: PrepareConfig, given: bool) -> Scaling:
    """The unit scale; where a given mask holds no contrast, the mask is to blame."""
    try:
        return robust_scaling(image, inside, settings.upper_percentile)
    except DataError as error:
        if given:
            raise MaskError(error.received, error.expected, error.remedy) from error
        raise


_SKULL = {"keep": "kept in the output, masked from the model", "strip": "removed"}


def _brain(volume: Volume, mask: np.ndarray | None, ground: Ground, settings: PrepareConfig) -> Brain:
    """The mask, given or estimated, with the one registration of the scan if it is asked for or was made to find the
    brain."""
    if mask is not None and mask.shape != volume.data.shape:
        expected = f"the scan's shape {volume.data.shape}"
        raise MaskError(f"mask of shape {mask.shape}", expected, "Resample the mask to its scan.")
    brain = find_brain(volume, settings.crop_neck, ground) if mask is None else Brain(mask, ground.stripped)
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
    """What was left out as fill, if anything was."""
    if ground.fill is None:
        return ()
    share = ground.fill.mask.mean()
    named = ground.fill.values[:_NAMED_VALUES]
    values = ", ".join(f"{value:g}" for value in named)
    return (f"fill: {share:.1%} of the voxels taken for background (values {values})",)


def _tilt(registration: Registration | None) -> np.ndarray | None:
    """``(3, 3)`` the template's axes in the scan, where they are worth turning the grid."""
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
    """How the bias field is treated, as in :attr:`Prepared.steps`."""
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
