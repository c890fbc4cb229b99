"""Is this scan what the model is for, and did harmonizing leave the person alone? Figures per image, and when to look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmh_ray.config import QualityConfig
from mmh_ray.errors import RefusedError
from mmh_ray.evaluation.cohort import Measure
from mmh_ray.imaging.grid import to_grid
from mmh_ray.imaging.template import template

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
            "How well the scan's brain and the ICBM-152 template share information after alignment; higher is better.",
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
        Measure("brain_ml", "brain, ml", "Volume of the brain mask in millilitres.", low_ml, high_ml),
        Measure(
            "fluid_contrast",
            "fluid - grey",
            "Mean intensity of fluid less that of grey matter, where the template has them, in standard deviations of the brain.",
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
            "Mean standard deviation of the three planes' estimates of a voxel, unit intensity: how far from its training "
            "the model is; lower is better.",
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
    """A sentence for every figure beyond its bounds."""
    found = []
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


def tissue_contrasts(
    data: np.ndarray, mask: np.ndarray, affine: np.ndarray, from_template: np.ndarray
) -> tuple[float, float]:
    """Fluid less grey and white less grey matter, in standard deviations of the brain; (0, 0) where template and brain do not meet.

    Parameters
    ----------
    data, mask:
        ``(I, J, K)`` scan and bool brain mask.
    affine:
        ``(4, 4)`` voxels to scan millimetres.
    from_template:
        ``(4, 4)`` template millimetres to scan millimetres.
    """
    known = template()
    grid, shape = from_template @ known.affine, known.brain.shape
    image = to_grid(data, affine, grid, shape)
    inside = to_grid(mask.astype(np.float32), affine, grid, shape) > 0.5
    spread = float(image[inside].std()) if inside.any() else 0.0
    weights = [tissue**3 * inside for tissue in known.tissues]  # near 1 only where the tissue is alone
    if spread == 0 or not all(weight.any() for weight in weights):
        return 0.0, 0.0
    grey, white, fluid = (float((image * weight).sum() / weight.sum()) for weight in weights)
    return (fluid - grey) / spread, (white - grey) / spread


def check_tissues(sequence: str, fluid: float, white: float, least: float) -> None:
    """Refuse a scan whose tissues are not ordered as those of its sequence: another sequence, no brain, a brain that lies otherwise.

    Raises
    ------
    RefusedError
        If fluid does not differ from grey matter by ``least`` in the right direction, or white matter lies on the wrong side of grey.
    """
    if sequence not in FLUID_IS_BRIGHT:
        return
    sign = 1 if FLUID_IS_BRIGHT[sequence] else -1
    wrong_white = sequence in WHITE_IS_BRIGHT and (white > 0) != WHITE_IS_BRIGHT[sequence]
    if sign * fluid >= least and not wrong_white:
        return
    order = "brighter" if sign > 0 else "darker"
    expected = f"a {sequence}: fluid {order} than grey matter by {least:g} or more"
    if sequence in WHITE_IS_BRIGHT:
        expected += f", white matter {'brighter' if WHITE_IS_BRIGHT[sequence] else 'darker'}"
    raise RefusedError(
        f"fluid {fluid:+.2f} and white matter {white:+.2f} standard deviations from grey",
        expected,
        "Check the sequence in the file's name, that it shows an adult's head, and its orientation.",
    )
