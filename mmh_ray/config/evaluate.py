"""Settings for the comparison of methods and for the promotion of models."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval, Len
from pydantic.dataclasses import dataclass

from mmh_ray.config.section import SETTINGS, Section
from mmh_ray.config.values import Named, Number, Seed, Several, Whole


@dataclass(frozen=True, config=SETTINGS)
class EvaluateConfig(Section):
    """Comparison of methods (`mmh evaluate`)."""

    subjects: Literal["auto", "travelers", "test", "all"] = "auto"
    """Subjects that are scored: `travelers`, scanned at several sites; `test`, the split; `all`. `auto` takes travelers
    if there are any, else the test split if it is large enough for the probes, else all. Baselines are always fitted on
    the train split. Ignored with `--target`."""
    draws: Annotated[Whole, Interval(ge=100, le=10**6)] = 1000
    """Bootstrap draws of subjects for a confidence interval."""
    cnn: Literal["some", "all", "none"] = "some"
    """Methods that are also scored by networks (site probes, tissue U-Net). `some`: raw, N4 + histogram matching and
    the archives. Each probe (one trained here, one frozen) takes 1 to 3 CPU seconds per image, most of the time of an
    evaluation."""
    seed: Seed = 0
    """Seed of folds, probes, clusterings and draws."""
    label_table: Literal["auto", "freesurfer", "dlmuse", "tissues", "bids"] = "auto"
    """Label numbers of label maps (`*_dseg.nii.gz`): `freesurfer`; `dlmuse`; `tissues`, 1 CSF, 2 GM, 3 WM; `bids`,
    1 GM, 2 WM, 3 CSF. `auto` uses `desc-` in their names. Maps without `desc-` and with labels 1, 2 and 3 are read as
    `tissues` if that agrees with the scan's intensities."""


@dataclass(frozen=True, config=SETTINGS)
class PromoteConfig(Section):
    """When a model gets another model's alias (`mmh promote`), by paired differences over subjects scored for both."""

    improve: Annotated[Several[Named], Len(1, 1000)] = ("site_probe", "site_probe_cnn", "truth_nrmse", "psnr")
    """Metrics of which at least one must be better in one sequence: the 95 % interval of the difference excludes 0, and
    p is at most .05. Not `w1`, which histogram matching makes small by definition."""
    keep: Annotated[Several[Named], Len(0, 1000)] = (
        "truth_nrmse",
        "dice_truth",
        "gradient_correlation",
        "structural_dissimilarity",
        "hallucination",
        "lesion_preservation",
        "label_auc_wm",
        "label_auc_csf",
        "label_contrast",
        "psnr",
        "w1",
    )
    """Metrics for which a loss must be excluded in every sequence: the interval's worse end is within the margin."""
    watch: Annotated[Several[Named], Len(0, 1000)] = (
        "site_probe",
        "site_probe_cnn",
        "site_probe_pattern",
        "site_probe_style",
        "subject_nearest",
        "age_mae",
    )
    """Metrics for which no loss may be shown: the interval is not entirely on the worse side. For figures that are
    noisy or yes/no per image: with few subjects, they could not exclude a loss even between a model and itself."""
    margin: Annotated[Number, Interval(ge=0, lt=1)] = 0.05
    """Largest loss that passes for `keep`, as a share of the current model's value. For metrics that should be 1, it is
    a share of 1; for an AUC, of .1."""
    least_subjects: Annotated[Whole, Interval(ge=2, le=10**6)] = 6
    """Fewest subjects for a promotion; fewer than six cannot reach p of .05."""
