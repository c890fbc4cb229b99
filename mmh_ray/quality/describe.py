"""Is this scan what the model is for, and did harmonizing leave the person alone? Figures per image, and when to look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from mmh_ray.config import GridConfig, PrepareConfig, QualityConfig
from mmh_ray.errors import DataError, MaskError, RefusedError
from mmh_ray.evaluation.metrics.agreement import gradient_correlation
from mmh_ray.imaging.grid import share_held, to_grid
from mmh_ray.imaging.ground import Ground, background, border, find_ground
from mmh_ray.imaging.intensity import robust_scaling
from mmh_ray.imaging.preprocess import Prepared, prepare_volume
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume
from mmh_ray.quality.cohort import Measure
from mmh_ray.quality.histograms import UPPER
from mmh_ray.quality.oddities import mask_offset, second_head, spikes, widest_fluid, wrapped
from mmh_ray.quality.receive_field import without_field

FLUID_IS_BRIGHT = {"T1w": False, "T2w": True, "FLAIR": False}
"""Whether fluid is the brightest or the darkest tissue; the contrasts of other sequences are not checked."""
WHITE_IS_BRIGHT = {"T1w": True, "T2w": False}
"""Whether white matter of adults is brighter than grey."""

_DARKEST_PERCENT = 2.0
"""Percentile of what surrounds the brain that counts as the darkest of it."""


def measures(config: QualityConfig) -> list[Measure]:
    """The figures of an image, what they mean, and the bounds beyond which it is flagged."""
    low_ml, high_ml = config.brain_ml
    return [
        Measure(
            "preservation",
            "anatomy kept",
            "Correlation of the gradient magnitudes of scan and harmonized image inside the brain; 1 is best.",
            config.least_preservation,
            None,
        ),
        Measure(
            "registration",
            "fits the template",
            "Share of the scan's local contrast that the tissues of the aligned ICBM-152 template explain; 1 is best.",
            config.least_registration,
            None,
        ),
        Measure(
            "coverage",
            "brain in view",
            "Part of the template's brain, aligned, that lies inside the field of view; 1 is best.",
            config.least_coverage,
            None,
        ),
        Measure(
            "background",
            "air",
            "Lower quartile of the voxels on the faces of the scan, or the darkest around the brain, unit intensity: 0 is dark air.",
            None,
            config.most_background,
        ),
        Measure(
            "air_after",
            "air, harmonized",
            "The same of the harmonized image, or its mean over the scan's fill values if that is brighter.",
            None,
            config.most_background,
        ),
        Measure(
            "mask_offset",
            "mask beside the brain, mm",
            "Distance of the middle of the given brain mask from that of the aligned template's brain.",
            None,
            config.most_mask_offset_mm,
        ),
        Measure(
            "second_head",
            "second head",
            "Volume of the second largest part of the scan's foreground, as a share of the largest: 1 where two heads lie side by side.",
            None,
            config.most_second_head,
        ),
        Measure(
            "spikes",
            "spikes",
            "Voxels of the brain that alone lie half the scan's unit intensity above, or below, all their neighbours.",
            None,
            config.most_spikes,
        ),
        Measure(
            "wrapped",
            "integers ran over",
            "Steps between neighbours from the scan's brightest to its darkest values, where these are too many for edges.",
            None,
            config.most_wrapped,
        ),
        Measure(
            "fill_step",
            "interpolated fill",
            "How far fill values that were interpolated lie from the scan, in its ranges: of far ones something reaches the tissue.",
            None,
            config.most_fill_step,
        ),
        Measure(
            "widest_fluid",
            "widest fluid, mm",
            "Radius of the largest ball of fluid in the brain: a resection, a cyst or very wide ventricles, whose contrast may be reduced.",
            None,
            config.most_fluid_mm,
        ),
        Measure(
            "held",
            "brain in grid",
            "Part of the brain mask that lies inside the model's working grid; what lies outside the model never sees. 1 is best.",
            config.least_held,
            None,
        ),
        Measure("brain_ml", "brain, ml", "Volume of the brain mask in millilitres.", low_ml, high_ml),
        Measure(
            "fluid_contrast",
            "fluid - grey",
            "Mean intensity of fluid less that of grey matter, where the template has them deep in the brain, in its standard deviations.",
            None,
            None,
        ),
        Measure(
            "white_contrast",
            "white - grey",
            "Mean intensity of white matter less that of grey matter, as above.",
            None,
            None,
        ),
        Measure(
            "disagreement",
            "doubt",
            "Mean standard deviation of the planes' estimates of a voxel, unit intensity: how far from its training "
            "the model is; lower is better. A single plane (harmonize.planes) has none.",
            None,
            config.most_disagreement,
        ),
        Measure(
            "bright",
            "out of range",
            "Part of the brain that is brighter in the harmonized image than the unified domain knows (1.25); lower is better.",
            None,
            config.most_bright,
        ),
    ]


def flags(figures: Mapping[str, float], config: QualityConfig) -> tuple[str, ...]:
    """A sentence for every figure beyond its bounds, and one where :func:`check_scan` had nothing to go by."""
    found = []
    if "registration" not in figures:
        found.append("not checked: without a registration nobody knows whether this is an adult's head of its sequence")
    for measure in measures(config):
        value = figures.get(measure.name)
        if value is not None and measure.is_outside(value):
            bound = (
                f"below {measure.low:g}"
                if measure.low is not None and value < measure.low
                else f"above {measure.high:g}"
            )
            found.append(f"{measure.label}: {value:.3g} is {bound}")
    return tuple(found)


def describe_scan(
    volume: Volume, brain: np.ndarray, registration: Registration | None, prepared: Prepared | None = None
) -> dict[str, float]:
    """What the scan alone shows: ``brain_ml``, ``background``, and where it is registered ``registration``, ``coverage`` and the contrasts.

    Parameters
    ----------
    brain:
        ``(I, J, K)`` bool mask at the scan's grid.
    prepared:
        The scan on the working grid. It gives the scale on which air is judged, and the figures of :mod:`mmh_ray.quality.oddities`.
    """
    ground = find_ground(volume) if prepared is None else prepared.ground
    laid = ground.lay(volume)
    scaling = robust_scaling(laid.data, brain) if prepared is None else prepared.scaling
    air = _air(laid.data, brain, ground)
    figures = {
        "brain_ml": float(brain.sum() * np.prod(volume.spacing) / 1000),
        "background": float(scaling.apply(np.array(air))),
    }
    if prepared is not None:
        figures |= _oddities(volume, laid, prepared)
    if registration is None:
        return figures
    grey, white, fluid, spread = _tissue_means(laid, brain, registration, ground.floor)
    figures |= {
        "registration": registration.quality,
        "coverage": _coverage(laid, registration, None if ground.stripped else ground.holes),
        "fluid_contrast": (fluid - grey) / spread,
        "white_contrast": (white - grey) / spread,
    }
    if prepared is not None and fluid != grey:
        grey_unit = float(scaling.apply(np.array(grey)))
        spacing_mm = float(np.linalg.norm(prepared.affine[:3, 0]))
        figures["widest_fluid"] = widest_fluid(prepared.image, prepared.mask, spacing_mm, grey_unit, fluid > grey)
    if prepared is not None and prepared.given:
        figures["mask_offset"] = mask_offset(laid, brain, registration)
    return figures


def _oddities(volume: Volume, laid: Volume, prepared: Prepared) -> dict[str, float]:
    fill = prepared.ground.fill
    nothing = (background(volume.data), *(fill.values if fill else ()))
    figures = {
        "spikes": float(spikes(prepared.scaling.apply(laid.data), prepared.brain)),
        "wrapped": float(wrapped(volume.data, nothing)),
        "fill_step": fill.step if fill else 0.0,
    }
    signal = laid.like(laid.data - np.float32(prepared.ground.floor))
    return figures | {"second_head": second_head(signal)}


def _air(data: np.ndarray, brain: np.ndarray, ground: Ground) -> float:
    """Intensity of the air, in the scan's units: the lower quartile of the volume's faces.

    Where padding or a mask lies over the air, what is darkest around the brain tells what lies under tissue, if it is brighter.
    """
    faces = float(np.percentile(border(data), 25))
    around = ~ndimage.binary_dilation(brain, iterations=2) & (data > ground.floor)
    if ground.stripped or not around.any():
        return faces
    return max(faces, float(np.percentile(data[around], _DARKEST_PERCENT)))


def describe_outcome(source: Volume, harmonized: Volume, brain: np.ndarray) -> dict[str, float]:
    """What harmonizing did: ``preservation`` of the edges, and the part of the brain that is too ``bright``; both on the scan's grid, the
    harmonized image in unit intensity."""
    return {
        "preservation": gradient_correlation(harmonized.data, source.data, brain),
        "bright": float((harmonized.data[brain] > UPPER).mean()),
    }


def describe_air(harmonized: Volume, ground: Ground) -> dict[str, float]:
    """How bright harmonizing left the air, ``air_after``: on the faces as ``background``, and where the scan has fill values."""
    air = float(np.percentile(border(harmonized.data), 25))
    if ground.holes is not None:
        air = max(air, float(harmonized.data[ground.holes].mean()))
    return {"air_after": air}


def _tissue_means(
    volume: Volume, brain: np.ndarray, registration: Registration, floor: float
) -> tuple[float, float, float, float]:
    """Mean of grey matter, white matter and fluid, and the standard deviation, of the deep brain without its receive field, in the scan's
    units; (0, 0, 0, 1) where template and brain do not meet.

    Deep in the brain alone: an estimated mask has dura and bone in its rim, where the template has fluid, and in a T2w those are black.
    """
    known = template()
    grid, shape = registration.matrix @ known.affine, known.brain.shape
    image = to_grid(volume.data - np.float32(floor), volume.affine, grid, shape)
    inside = known.deep & (to_grid(brain.astype(np.float32), volume.affine, grid, shape) > 0.5)
    weights = [tissue**3 * inside for tissue in known.tissues]  # near 1 only where the tissue is alone
    if not all(weight.any() for weight in weights):
        return 0.0, 0.0, 0.0, 1.0
    image = without_field(image, known.tissues, inside)
    spread = float(image[inside].std())
    if spread == 0:
        return 0.0, 0.0, 0.0, 1.0
    grey, white, fluid = (float((image * weight).sum() / weight.sum()) for weight in weights)
    return grey + floor, white + floor, fluid + floor, spread


def _coverage(volume: Volume, registration: Registration, holes: np.ndarray | None) -> float:
    """Part of the template's brain, laid into the scan, that the scan's field of view holds, but for its holes."""
    known = template()
    return share_held(known.brain, registration.matrix @ known.affine, volume.affine, volume.data.shape, holes)


def check_scan(sequence: str, figures: Mapping[str, float], config: QualityConfig, mask_given: bool = False) -> None:
    """Refuse a scan that is not what the model is for: no adult's head, another sequence, a head that lies otherwise than its header says,
    integers that ran over.

    Without a registration only the last is known.

    Parameters
    ----------
    mask_given:
        Whether the brain mask came with the scan, so that none can be asked for.

    Raises
    ------
    RefusedError
        If the template does not fit, the tissues are not ordered as those of the sequence, or bright voxels start anew from the dark end.
    """
    if figures.get("wrapped", 0) > config.most_wrapped:
        raise RefusedError(
            f"integers that ran over: {figures['wrapped']:.0f} steps from the brightest to the darkest between neighbours",
            f"{config.most_wrapped:g} at most",
            "Convert the scan again to a type that holds its largest value, such as float32.",
        )
    if "registration" not in figures:
        return
    if figures["registration"] < config.least_fit:
        remedy = "Check that it is an MRI of an adult's head and that its orientation is right"
        raise RefusedError(
            f"a head that the ICBM-152 template fits by {figures['registration']:.2f}",
            f"{config.least_fit:g} or more",
            f"{remedy}." if mask_given else f"{remedy}; give a brain mask if it is.",
        )
    if sequence in FLUID_IS_BRIGHT:
        _check_tissues(sequence, figures["fluid_contrast"], figures["white_contrast"], config.least_contrast)


def check_prepared(
    sequence: str,
    figures: Mapping[str, float],
    config: QualityConfig,
    volume: Volume,
    prepared: Prepared,
    grid: GridConfig,
    settings: PrepareConfig,
) -> None:
    """:func:`check_scan` of a scan that was prepared so. Refused with a given mask it is tried without, to tell which to blame.

    Raises
    ------
    RefusedError
        As :func:`check_scan`.
    MaskError
        If the scan would pass with a mask estimated from it: the given one is another's, or lies elsewhere.
    """
    try:
        check_scan(sequence, figures, config, prepared.given)
    except RefusedError as refusal:
        if prepared.given and _passes_without_mask(sequence, config, volume, grid, settings):
            raise MaskError(
                f"a brain mask in which the scan shows {refusal.received}; with an estimated mask it passes",
                "a mask of this scan's brain",
                "Check that the mask belongs to this scan and its affine is right, or leave it out.",
            ) from refusal
        raise


def _passes_without_mask(
    sequence: str, config: QualityConfig, volume: Volume, grid: GridConfig, settings: PrepareConfig
) -> bool:
    try:
        alone = prepare_volume(volume, None, grid, settings)
        check_scan(sequence, describe_scan(volume, alone.brain, alone.registration, alone), config)
    except DataError:
        return False
    return True


def _check_tissues(sequence: str, fluid: float, white: float, least: float) -> None:
    wanted = [("fluid", fluid if FLUID_IS_BRIGHT[sequence] else -fluid, least, FLUID_IS_BRIGHT[sequence])]
    if sequence in WHITE_IS_BRIGHT:  # grey and white matter of some T2w are all but equal
        bright = WHITE_IS_BRIGHT[sequence]
        wanted.append(("white matter", white if bright else -white, least if bright else 0.0, bright))
    if all(found >= bound for _, found, bound, _ in wanted):
        return
    order = ", ".join(
        f"{name} {'brighter' if bright else 'darker'} than grey by {bound:g}" for name, _, bound, bright in wanted
    )
    raise RefusedError(
        f"fluid {fluid:+.2f} and white matter {white:+.2f} standard deviations from grey",
        f"a {sequence}: {order} or more",
        "Check the sequence in the file's name.",
    )
