"""The figures of an image: what each means, its bounds, and what to tell a person when one is beyond them."""

from __future__ import annotations

from collections.abc import Mapping

from mmh_ray.config import QualityConfig
from mmh_ray.quality.cohort import Measure


def measures(config: QualityConfig) -> list[Measure]:
    """The figures of an image, what they mean, and the bounds beyond which it is flagged."""
    low_ml, high_ml = config.brain_ml
    return [
        Measure(
            "preservation",
            "anatomy kept",
            "Correlation of the gradient magnitudes of scan and harmonized image inside the brain; 1 is best.",
            low=config.least_preservation,
        ),
        Measure(
            "registration",
            "fits the template",
            "Share of the scan's local contrast that the tissues of the aligned ICBM-152 template explain; 1 is best.",
            low=config.least_registration,
        ),
        Measure(
            "coverage",
            "brain in view",
            "Part of the template's brain, aligned, that lies inside the field of view; 1 is best.",
            low=config.least_coverage,
        ),
        Measure(
            "background",
            "air",
            "Lower quartile of the voxels on the faces of the scan, or the darkest around the brain, unit intensity: 0 is dark air.",
            high=config.most_background,
        ),
        Measure(
            "air_after",
            "air, harmonized",
            "The same of the harmonized image, or its mean over the scan's fill values if that is brighter.",
            high=config.most_background,
        ),
        Measure(
            "mask_offset",
            "mask beside the brain, mm",
            "Distance of the middle of the given brain mask from that of the aligned template's brain.",
            high=config.most_mask_offset_mm,
        ),
        Measure(
            "second_head",
            "second head",
            "Volume of the second largest part of the scan's foreground, as a share of the largest: 1 where two heads lie side by side.",
            high=config.most_second_head,
        ),
        Measure(
            "spikes",
            "spikes",
            "Voxels of the brain that alone lie half the scan's unit intensity above, or below, all their neighbours.",
            high=config.most_spikes,
        ),
        Measure(
            "wrapped",
            "integers ran over",
            "Steps between neighbours from the scan's brightest to its darkest values, where these are too many for edges.",
            high=config.most_wrapped,
        ),
        Measure(
            "fill_step",
            "interpolated fill",
            "How far fill values that were interpolated lie from the scan, in its ranges: of far ones something reaches the tissue.",
            high=config.most_fill_step,
        ),
        Measure(
            "widest_fluid",
            "widest fluid, mm",
            "Radius of the largest ball of fluid in the brain: a resection, a cyst or very wide ventricles, whose contrast may be reduced.",
            high=config.most_fluid_mm,
        ),
        Measure(
            "held",
            "brain in grid",
            "Part of the brain mask that lies inside the model's working grid; what lies outside the model never sees. 1 is best.",
            low=config.least_held,
        ),
        Measure("brain_ml", "brain, ml", "Volume of the brain mask in millilitres.", low=low_ml, high=high_ml),
        Measure(
            "fluid_contrast",
            "fluid - grey",
            "Mean intensity of fluid less that of grey matter, where the template has them deep in the brain, in its standard deviations.",
        ),
        Measure("white_contrast", "white - grey", "Mean intensity of white matter less that of grey matter, as above."),
        Measure(
            "disagreement",
            "doubt",
            "Mean standard deviation of the planes' estimates of a voxel, unit intensity: how far from its training "
            "the model is; lower is better. A single plane (harmonize.planes) has none.",
            high=config.most_disagreement,
        ),
        Measure(
            "bright",
            "out of range",
            "Part of the brain that is brighter in the harmonized image than the unified domain knows (1.25); lower is better.",
            high=config.most_bright,
        ),
    ]


def flags(figures: Mapping[str, float], config: QualityConfig) -> tuple[str, ...]:
    """A sentence for every figure beyond its bounds, and one where there was nothing to check the scan by."""
    sentences = []
    if "registration" not in figures:
        sentences.append(
            "not checked: without a registration nobody knows whether this is an adult's head of its sequence"
        )
    for measure in measures(config):
        value = figures.get(measure.name)
        if value is None:
            continue
        if measure.low is not None and value < measure.low:
            sentences.append(f"{measure.label}: {_unlike(value, measure.low)} is below {measure.low:g}")
        elif measure.high is not None and value > measure.high:
            sentences.append(f"{measure.label}: {_unlike(value, measure.high)} is above {measure.high:g}")
    return tuple(sentences)


def _unlike(value: float, bound: float) -> str:
    """A value to three digits, or to as many as tell it from its bound."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if float(text) != bound:
            return text
    return repr(value)
