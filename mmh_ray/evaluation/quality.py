"""Is this scan what the model is for, and did harmonizing leave the person alone? Figures per image, and when to look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmh_ray.config import QualityConfig
from mmh_ray.errors import RefusedError
from mmh_ray.evaluation.cohort import Measure
from mmh_ray.evaluation.curves import UPPER
from mmh_ray.evaluation.metrics import gradient_correlation
from mmh_ray.imaging.grid import share_held, to_grid
from mmh_ray.imaging.intensity import robust_scaling
from mmh_ray.imaging.ground import border, on_dark_ground
from mmh_ray.imaging.registration import Registration
from mmh_ray.imaging.template import template
from mmh_ray.imaging.volume import Volume

FLUID_IS_BRIGHT = {"T1w": False, "T2w": True, "FLAIR": False}
"""Whether fluid is the brightest or the darkest tissue; the contrasts of other sequences are not checked."""
WHITE_IS_BRIGHT = {"T1w": True, "T2w": False}
"""Whether white matter of adults is brighter than grey."""


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
            "Lower quartile of the voxels on the faces of the scan, unit intensity: 0 is dark air.",
            None,
            config.most_background,
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


def describe_scan(volume: Volume, brain: np.ndarray, registration: Registration | None) -> dict[str, float]:
    """What the scan alone shows: ``brain_ml``, ``background``, and where it is registered ``registration``, ``coverage`` and the contrasts.

    Parameters
    ----------
    brain:
        ``(I, J, K)`` bool mask at the scan's grid.
    """
    volume, _ = on_dark_ground(volume)
    air = robust_scaling(volume.data, brain).apply(np.percentile(border(volume.data), 25))
    figures = {"brain_ml": float(brain.sum() * np.prod(volume.spacing) / 1000), "background": float(air)}
    if registration is None:
        return figures
    fluid, white = tissue_contrasts(volume, brain, registration)
    coverage = _coverage(volume, registration)
    more = {
        "registration": registration.quality,
        "coverage": coverage,
        "fluid_contrast": fluid,
        "white_contrast": white,
    }
    return figures | more


def describe_outcome(source: Volume, harmonized: Volume, brain: np.ndarray) -> dict[str, float]:
    """What harmonizing did: ``preservation`` of the edges, and the part of the brain that is too ``bright``; both on the scan's grid, the
    harmonized image in unit intensity."""
    return {
        "preservation": gradient_correlation(harmonized.data, source.data, brain),
        "bright": float((harmonized.data[brain] > UPPER).mean()),
    }


def tissue_contrasts(volume: Volume, brain: np.ndarray, registration: Registration) -> tuple[float, float]:
    """Fluid less grey and white less grey matter, in standard deviations of the brain; (0, 0) where template and brain do not meet.

    Deep in the brain alone: an estimated mask has dura and bone in its rim, where the template has fluid, and in a T2w those are black.
    """
    known = template()
    grid, shape = registration.matrix @ known.affine, known.brain.shape
    image = to_grid(volume.data, volume.affine, grid, shape)
    inside = known.deep & (to_grid(brain.astype(np.float32), volume.affine, grid, shape) > 0.5)
    spread = float(image[inside].std()) if inside.any() else 0.0
    weights = [tissue**3 * inside for tissue in known.tissues]  # near 1 only where the tissue is alone
    if spread == 0 or not all(weight.any() for weight in weights):
        return 0.0, 0.0
    grey, white, fluid = (float((image * weight).sum() / weight.sum()) for weight in weights)
    return (fluid - grey) / spread, (white - grey) / spread


def _coverage(volume: Volume, registration: Registration) -> float:
    """Part of the template's brain, laid into the scan, that the scan's field of view holds."""
    known = template()
    return share_held(known.brain, registration.matrix @ known.affine, volume.affine, volume.data.shape)


def check_scan(sequence: str, figures: Mapping[str, float], config: QualityConfig) -> None:
    """Refuse a scan that is not what the model is for: no adult's head, another sequence, a head that lies otherwise than its header says.

    Without a registration nothing is known and nothing refused.

    Raises
    ------
    RefusedError
        If the template does not fit, or the tissues are not ordered as those of the sequence.
    """
    if "registration" not in figures:
        return
    if figures["registration"] < config.least_fit:
        raise RefusedError(
            f"a head that the ICBM-152 template fits by {figures['registration']:.2f}",
            f"{config.least_fit:g} or more",
            "Check that it is an MRI of an adult's head and that its orientation is right; give a brain mask if it is.",
        )
    if sequence in FLUID_IS_BRIGHT:
        _check_tissues(sequence, figures["fluid_contrast"], figures["white_contrast"], config.least_contrast)


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
