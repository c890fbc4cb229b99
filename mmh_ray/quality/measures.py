"""Defines the quality measures of an image with their bounds, and the flags for values beyond these bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmh_ray.config import QualityConfig
from mmh_ray.quality.cohort import Measure


def measures(config: QualityConfig) -> list[Measure]:
    """The quality measures of an image, their meaning, and the bounds beyond which it is flagged."""
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
            "Lower quartile of the voxels on the faces of the scan, or the darkest around the brain, unit intensity: "
            "0 is dark air.",
            high=config.most_background,
        ),
        Measure(
            "air_after",
            "air, harmonized",
            "The same for the harmonized image, or its mean over the scan's fill values if that is brighter.",
            high=config.most_background,
        ),
        Measure(
            "mask_offset",
            "mask beside the brain, mm",
            "Distance between the middle of the given brain mask and the middle of the aligned template's brain.",
            high=config.most_mask_offset_mm,
        ),
        Measure(
            "second_head",
            "second head",
            "Volume of the second largest part of the scan's foreground, as a share of the largest: near 1 if the "
            "scan shows two heads.",
            high=config.most_second_head,
        ),
        Measure(
            "spikes",
            "spikes",
            "Number of single voxels in the brain that are brighter than all their neighbours by 0.5 of unit "
            "intensity, or darker by that much.",
            high=config.most_spikes,
        ),
        Measure(
            "wrapped",
            "integer overflow",
            "Number of steps between neighbours from the scan's brightest to its darkest values, if these are too "
            "many to be edges.",
            high=config.most_wrapped,
        ),
        Measure(
            "fill_step",
            "interpolated fill",
            "Distance of interpolated fill values from the scan's intensities, in units of their range: distant ones "
            "affect the tissue.",
            high=config.most_fill_step,
        ),
        Measure(
            "widest_fluid",
            "widest fluid, mm",
            "Radius of the largest ball of fluid in the brain: a resection, a cyst or very wide ventricles, whose "
            "contrast may be reduced.",
            high=config.most_fluid_mm,
        ),
        Measure(
            "held",
            "brain in grid",
            "Part of the brain mask that lies inside the model's working grid; the model does not see the rest. "
            "1 is best.",
            low=config.least_held,
        ),
        Measure("brain_ml", "brain, ml", "Volume of the brain mask in millilitres.", low=low_ml, high=high_ml),
        Measure(
            "fluid_contrast",
            "fluid - grey",
            "Mean intensity of fluid minus that of grey matter, at the template's tissues deep in the brain, in "
            "standard deviations of the intensity there.",
        ),
        Measure(
            "white_contrast",
            "white - grey",
            "Mean intensity of white matter minus that of grey matter, measured in the same way.",
        ),
        Measure(
            "disagreement",
            "doubt",
            "Mean standard deviation of the planes' estimates of a voxel, unit intensity: shows how far the scan is "
            "from the training data; lower is better. A single plane (harmonize.planes) has none.",
            high=config.most_disagreement,
        ),
        Measure(
            "bright",
            "out of range",
            "Part of the brain that is brighter in the harmonized image than the range of the unified domain (1.25); "
            "lower is better.",
            high=config.most_bright,
        ),
    ]


def flags(figures: Mapping[str, float], config: QualityConfig) -> tuple[str, ...]:
    """One sentence for each measure beyond its bounds, and one if the scan could not be checked."""
    sentences = []
    if "registration" not in figures:
        sentences.append(
            "not checked: without a registration it is unknown whether this is an adult's head of its sequence"
        )
    for measure in measures(config):
        sentence = measure.flag(figures.get(measure.name, math.nan))
        if sentence:
            sentences.append(sentence)
    return tuple(sentences)
