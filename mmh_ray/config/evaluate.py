"""Comparison of methods, and what a model must show to be promoted."""

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
    """Who is scored: `travelers`, subjects scanned at several sites; `test`, the split; `all`. `auto` takes travelers
    where there are some, else the test split if it is large enough for the probes, else all. Baselines are fitted on
    the train split in any case. With `--target` it does not count."""
    draws: Annotated[Whole, Interval(ge=100, le=10**6)] = 1000
    """Bootstrap draws of subjects for an interval."""
    cnn: Literal["some", "all", "none"] = "some"
    """Whose images networks judge, too (site probes, the tissue U-Net): `some`, raw, N4 + histogram matching and the
    archives. Each probe (trained anew, frozen) takes 1 to 3 CPU seconds per image, most of the time of an evaluation."""
    seed: Seed = 0
    """Seed of folds, probes, clusterings and draws."""
    label_table: Literal["auto", "freesurfer", "dlmuse", "tissues", "bids"] = "auto"
    """How label maps (`*_dseg.nii.gz`) number the tissues: `freesurfer`; `dlmuse`; `tissues`, 1 CSF, 2 GM, 3 WM;
    `bids`, 1 GM, 2 WM, 3 CSF. `auto` goes by `desc-` in their names, and takes unnamed maps of 1, 2 and 3 for `tissues`
    where the scan's intensities agree."""


@dataclass(frozen=True, config=SETTINGS)
class PromoteConfig(Section):
    """When a model takes another's alias (`mmh promote`): paired differences over subjects that both were scored on."""

    improve: Annotated[Several[Named], Len(1, 1000)] = ("site_probe", "site_probe_cnn", "truth_nrmse", "psnr")
    """Metrics of which at least one, in one sequence, must be better: the 95 % interval of the difference beyond 0, p at
    most .05. Not `w1`: matching histograms makes it small by definition."""
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
    """Metrics of which a loss must be excluded, in every sequence: the interval's worse end stays within the margin."""
    watch: Annotated[Several[Named], Len(0, 1000)] = (
        "site_probe",
        "site_probe_cnn",
        "site_probe_pattern",
        "site_probe_style",
        "subject_nearest",
        "age_mae",
    )
    """Metrics of which no loss may be shown: the interval does not lie wholly on the worse side. For figures that are
    yes or no for an image, or noisy: few people cannot exclude a loss of the margin even between a model and itself."""
    margin: Annotated[Number, Interval(ge=0, lt=1)] = 0.05
    """How much worse still passes for `keep`, as a share of the present holder's value (of 1, where closer to 1 is
    better; of .1 for an AUC)."""
    least_subjects: Annotated[Whole, Interval(ge=2, le=10**6)] = 6
    """Subjects below which nothing is promoted; fewer than six cannot reach p of .05."""
