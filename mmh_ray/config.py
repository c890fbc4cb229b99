"""Typed configuration: frozen dataclasses, YAML files, dotted overrides, unknown keys refused.

One :class:`Config` holds a section per command, so that one YAML file can drive a whole run::

    config = load_config("configs/demo.yaml", ["train.steps=10", "grid.spacing_mm=2"])
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mmh_ray.errors import ConfigError


def _require(condition: bool, key: str, received: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={received!r}", expected, f"Change {key} in the YAML file or by {key}=VALUE.")


@dataclass(frozen=True)
class PhantomConfig:
    """A simulated multi-site archive with known truth (`mmh phantom`)."""

    sites: int = 4
    """Scanners to simulate, at most 8."""
    subjects_per_site: int = 8
    """Subjects scanned at one site only."""
    travelers: int = 6
    """Subjects scanned at every site; never used for training."""
    spacing_mm: float = 3.0
    """Isotropic voxel edge in mm."""
    lesions: float = 0.25
    """Share of subjects with white-matter lesions, 0-1."""
    seed: int = 0
    """Same seed, same bytes."""

    def __post_init__(self) -> None:
        _require(1 <= self.sites <= 8, "phantom.sites", self.sites, "1 to 8")
        _require(self.subjects_per_site >= 0, "phantom.subjects_per_site", self.subjects_per_site, "0 or more")
        _require(self.travelers >= 0, "phantom.travelers", self.travelers, "0 or more")
        _require(0.5 <= self.spacing_mm <= 8, "phantom.spacing_mm", self.spacing_mm, "0.5 to 8 mm")
        _require(0 <= self.lesions <= 1, "phantom.lesions", self.lesions, "a share in 0-1")


@dataclass(frozen=True)
class ManifestConfig:
    """What the table of images records (`mmh manifest`)."""

    site_pattern: str | None = None
    """Regular expression with a group named `site`, tried on the relative path when no table or sidecar names the site."""
    val_fraction: float = 0.1
    """Share of subjects in split `val`."""
    test_fraction: float = 0.1
    """Share of subjects in split `test`. Subjects scanned at more than one site are always `test`."""
    seed: int = 0
    """Seed of the split by subject."""

    def __post_init__(self) -> None:
        total = self.val_fraction + self.test_fraction
        fits = 0 <= total < 1 and self.val_fraction >= 0 <= self.test_fraction
        _require(fits, "manifest.val_fraction + manifest.test_fraction", total, "shares below 1 in all")


@dataclass(frozen=True)
class GridConfig:
    """The working grid: canonical RAS axes, isotropic, one shape for every volume."""

    spacing_mm: float = 3.0
    """Voxel edge in mm."""
    shape: tuple[int, int, int] = (56, 72, 56)
    """Voxels along R, A and S."""

    def __post_init__(self) -> None:
        _require(self.spacing_mm > 0, "grid.spacing_mm", self.spacing_mm, "a positive length in mm")
        _require(all(n > 0 and n % 8 == 0 for n in self.shape), "grid.shape", self.shape, "three multiples of 8")


@dataclass(frozen=True)
class PrepareConfig:
    """From any scan to the working grid (`mmh prepare`; `mmh harmonize` runs the same steps).

    `mmh harmonize` takes `crop_neck`, `register` and `skull` from its own configuration, what decides intensities from the model's;
    other values of those are refused.
    """

    crop_neck: bool = True
    """Leave the neck, 190 mm below the top of the head, out of the search for the brain; images keep their shape."""
    register: bool = True
    """Lay the working grid along the template's axes where a head is tilted (rotation only: a brain keeps its size)."""
    skull: Literal["keep", "strip"] = "keep"
    """`strip`: harmonized images are zero outside the brain mask."""
    n4: bool = True
    """N4 bias-field correction (Tustison 2010) through SimpleITK."""
    n4_iterations: tuple[int, ...] = (30, 20, 10)
    """Iterations per fitting level."""
    upper_percentile: float = 99.5
    """Percentile of the brain mapped to 1; zero stays zero."""
    shard_volumes: int = 64
    """Volumes per Parquet shard."""

    def __post_init__(self) -> None:
        _require(50 < self.upper_percentile <= 100, "prepare.upper_percentile", self.upper_percentile, "50 to 100")
        _require(self.shard_volumes > 0, "prepare.shard_volumes", self.shard_volumes, "1 or more")


@dataclass(frozen=True)
class RestyleConfig:
    """How strongly the copy of a volume that makes the condition is re-styled (METHOD: style randomisation)."""

    curve: float = 0.5
    """Strength of the random monotone intensity curve; 0 leaves intensities alone."""
    gamma: float = 0.4
    """Standard deviation of log-gamma."""
    bias: float = 0.1
    """Standard deviation of the log of the smooth bias field."""
    blur_mm: float = 2.0
    """Largest full width at half maximum of the added point spread, in mm."""
    noise: float = 0.04
    """Largest standard deviation of the added Rician noise, brain 99.5th percentile = 1."""
    coarsen: float = 0.3
    """Probability of a coarser resolution (up to 2x) along one random axis."""


@dataclass(frozen=True)
class ModelConfig:
    """The denoiser and its condition."""

    sequences: tuple[str, ...] = ("T1w", "T2w")
    """BIDS suffixes the model harmonizes; every other suffix is refused by name."""
    distances: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Distances, in voxels, of the differences that make the condition."""
    slab: int = 3
    """Neighbouring slices denoised together (odd)."""
    patch: int = 2
    """Side of the square of pixels that one network pixel stands for (pixel unshuffle)."""
    channels: tuple[int, ...] = (32, 64, 96)
    """Channels of the U-Net levels."""
    layers: int = 1
    """Residual blocks per level."""
    attention: bool = False
    """Self-attention at the coarsest level."""
    train_timesteps: int = 1000
    """Length T of the diffusion schedule."""
    beta_start: float = 0.0015
    """First beta of the scaled-linear schedule."""
    beta_end: float = 0.0195
    """Last beta before the rescaling to zero terminal SNR."""

    def __post_init__(self) -> None:
        _require(bool(self.sequences), "model.sequences", self.sequences, "at least one BIDS suffix")
        _require(self.slab % 2 == 1, "model.slab", self.slab, "an odd number")
        _require(all(d > 0 for d in self.distances), "model.distances", self.distances, "positive voxel counts")


@dataclass(frozen=True)
class TrainConfig:
    """Stage 1 training (`mmh train-global`)."""

    steps: int = 400
    """Optimiser steps."""
    volumes_per_step: int = 2
    """Slice groups, each of one volume, over all workers in a step; a multiple of twice the workers."""
    slabs_per_plane: int = 2
    """Slabs per plane in a group."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, which trains the first and last layer, embeddings, biases and norms; linear warm-up, cosine decay."""
    matrix_learning_rate: float = 0.02
    """Peak learning rate of Muon, which trains the weights between; the same warm-up and decay."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 1e-4
    """Weight decay of both."""
    clip_norm: float = 1.0
    """Gradient norm limit."""
    ema_decay: float = 0.99
    """Decay of the exponential moving average of the weights."""
    simulated_share: float = 1.0
    """Share of groups that show simulated anatomies with a canonical noise-free target; the rest has the teacher's, the volume
    itself after histogram matching. At 1 the teacher serves only sequences that cannot be simulated."""
    terminal_share: float = 0.8
    """Share of samples trained at the last timestep (pure noise), where sampling starts."""
    gradient_weight: float = 0.5
    """Weight of the gradient loss."""
    style_weight: float = 0.05
    """Weight of the style losses on slice groups (W1 of histograms, mean, standard deviation)."""
    consistency_weight: float = 1.0
    """Weight of the squared difference between what two simulated scanners' scans of one person become. Pairs lie side by side in the
    stream; one whose halves fall to different workers does not count."""
    domain_decay: float = 0.95
    """Decay of the running unified-domain statistics."""
    validate_every: int = 250
    """Steps between validations (fixed noise, fixed timesteps)."""
    checkpoint_every: int = 250
    """Steps between checkpoints; a killed run loses at most this many."""
    validation_groups: int = 8
    """Slice groups in a validation."""
    workers: int = 1
    """Data-parallel training workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast precision; bf16 only on GPU."""
    storage: str = "runs"
    """Folder or URI for checkpoints."""
    run_name: str = "global"
    """Runs of the same name in the same storage resume."""
    seed: int = 0
    """Seed of initialisation, data order, styles and noise."""

    def __post_init__(self) -> None:
        for key in ("steps", "slabs_per_plane", "validate_every", "checkpoint_every", "validation_groups"):
            _require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "1 or more")
        _require(0 <= self.simulated_share <= 1, "train.simulated_share", self.simulated_share, "a share in 0-1")
        _require(0 < self.terminal_share <= 1, "train.terminal_share", self.terminal_share, "a share in (0, 1]")
        divides = self.workers > 0 and self.volumes_per_step % self.workers == 0
        _require(divides, "train.volumes_per_step", self.volumes_per_step, "a multiple of train.workers")
        together = self.volumes_per_step % (2 * self.workers) == 0 or not self.consistency_weight
        expected = "a multiple of 2 x train.workers, as two scans of one person go to one worker, or train.consistency_weight=0"
        _require(together, "train.volumes_per_step", self.volumes_per_step, expected)
        _require(self.precision == "fp32" or self.use_gpu, "train.precision", self.precision, "fp32 without a GPU")


@dataclass(frozen=True)
class TargetConfig:
    """Stage 2, an adapter per target site and sequence on a frozen global model (`mmh train-target`)."""

    site: tuple[str, ...] = ()
    """Sites to train adapters for, side by side; one name or a list."""
    images: int = 0
    """Target images per sequence, drawn by `target.seed` from the site's training and validation images; 0 takes all, 3 is enough."""
    rank: int = 4
    """Rank of the low-rank updates of the convolutions (LoRA: Hu et al., ICLR 2022)."""
    steps: int = 100
    """Most optimiser steps."""
    slabs_per_plane: int = 4
    """Slabs per plane in a group; a step has two groups of the site and one of a source site."""
    sources: int = 8
    """Images of other sites and the same sequence to move to the target; about a quarter of them serve validation alone."""
    restyles: int = 1
    """Random styles in which each target image goes through the global model."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; linear warm-up over a tenth of the steps, cosine decay."""
    reconstruction_weight: float = 1.0
    """Weight of the reconstruction of the site's own images (L1)."""
    gradient_weight: float = 0.5
    """Weight of the multi-scale gradient loss."""
    statistics_weight: float = 0.2
    """Weight of the distance of histogram, mean and standard deviation from the site's."""
    displacement_weight: float = 0.002
    """Weight of the style displacement loss, direction and magnitude; brought in slowly."""
    last_steps: int = 10
    """Sampling steps, of the last ones, through which gradients flow."""
    validate_every: int = 10
    """Steps between validations on images that are not trained on."""
    patience: int = 3
    """Validations without a better score after which training stops; the best adapter is kept."""
    storage: str = "runs"
    """Folder or URI below which `targets/SITE` is written."""
    seed: int = 0
    """Seed of styles, slices and noise."""

    def __post_init__(self) -> None:
        for key in (
            "rank",
            "steps",
            "slabs_per_plane",
            "restyles",
            "last_steps",
            "validate_every",
            "patience",
        ):
            _require(getattr(self, key) > 0, f"target.{key}", getattr(self, key), "1 or more")
        _require(len(set(self.site)) == len(self.site), "target.site", self.site, "each site once")
        _require(self.sources >= 2, "target.sources", self.sources, "2 or more")
        _require(self.images == 0 or self.images >= 3, "target.images", self.images, "3 or more, or 0 for all")


@dataclass(frozen=True)
class StyleConfig:
    """The style encoder: which network looks at slices, and how its aggregator learns."""

    backbone: str = "embedded"
    """`embedded` (ships inside the package); `hf-hub:OWNER/NAME`; a local folder with `open_clip_config.json` and weights; or the name of
    any open_clip model. Of open_clip models only the image tower is read."""
    weights: str | None = None
    """For an open_clip name: a pretrained tag, a file, or `random` (fixed seed). The other backbones bring their own."""
    sha256: str | None = None
    """SHA-256 that the weights file of an open_clip backbone must have, as it is logged; none takes any file."""
    slices: int = 12
    """Slices per plane, spread over the brain, of whole volumes; stage 2 compares slice groups (`target.slabs_per_plane`)."""
    alpha: float = 0.2
    """Weight of the fusion network beside the mean over planes."""
    checkpoint: bool = False
    """Gradient checkpointing: recompute the backbone's activations plane by plane instead of keeping them."""
    temperature: float = 0.1
    """Temperature of the contrast between styles."""
    spread_weight: float = 1.0
    """Weight of the term that keeps the style vectors apart while the aggregator learns."""
    steps: int = 200
    """Optimiser steps of the aggregator."""
    learning_rate: float = 1e-3
    """Peak learning rate of the aggregator."""

    def __post_init__(self) -> None:
        for key in ("slices", "steps"):
            _require(getattr(self, key) > 0, f"style.{key}", getattr(self, key), "1 or more")
        _require(
            bool(self.backbone), "style.backbone", self.backbone, "embedded, hf-hub:..., a folder or an open_clip name"
        )
        _require(self.alpha >= 0, "style.alpha", self.alpha, "0 or more")
        _require(self.temperature > 0, "style.temperature", self.temperature, "a positive number")


@dataclass(frozen=True)
class HarmonizeConfig:
    """Batch inference (`mmh harmonize`); `mmh train-target` trains adapters on the same sampling."""

    steps: int = 1
    """Sampling steps from noise (DDIM)."""
    inversion_depth: int = 0
    """DDIM inversion steps from the source instead of noise, as published; 0 starts from noise."""
    fusion: Literal["mean", "median"] = "mean"
    """How the planes' estimates of a voxel are fused."""
    planes: tuple[str, ...] = ("axial", "coronal", "sagittal")
    """Planes to run."""
    detail: Literal["project", "model"] = "project"
    """`project`: style from the model, detail from the scan (guided filter); `model`: the model's image itself."""
    detail_radius: int = 1
    """Radius of the guided filter's window, in working voxels."""
    space: Literal["native", "template"] = "native"
    """Grid of the harmonized image: the scan's own, or the 1 mm grid of ICBM-152 2009a (symmetric)."""
    intensity: Literal["unit", "source"] = "unit"
    """`unit`: about 1 for bright tissue at every site; `source`: `unit * (high - low) + low`, with the scan's intensities `low` and `high`
    at unit intensity 0 and 1, so that its scale is kept and only its contrast is that of the unified domain."""
    batch_slabs: int = 32
    """Slabs per forward pass."""
    seed: int = 0
    """Seed of the one noise tensor that every volume shares."""
    slots: int = 0
    """Actors; 0 takes one per GPU, or one per two CPUs."""
    timeout_s: float = 600.0
    """Seconds that an image may take: then its actor is ended and the image fails; the others go on."""

    def __post_init__(self) -> None:
        _require(1 <= self.steps <= 500, "harmonize.steps", self.steps, "1 to 500")
        _require(0 <= self.inversion_depth <= 500, "harmonize.inversion_depth", self.inversion_depth, "0 to 500")
        for key in ("batch_slabs", "detail_radius"):
            _require(getattr(self, key) > 0, f"harmonize.{key}", getattr(self, key), "1 or more")
        for key in ("slots", "seed"):
            _require(getattr(self, key) >= 0, f"harmonize.{key}", getattr(self, key), "0 or more")
        _require(self.timeout_s > 0, "harmonize.timeout_s", self.timeout_s, "a positive number of seconds")
        known = {"axial", "coronal", "sagittal"}
        fits = bool(self.planes) and set(self.planes) <= known
        _require(fits, "harmonize.planes", self.planes, f"some of {sorted(known)}")


@dataclass(frozen=True)
class QualityConfig:
    """When a harmonized image is flagged for a person to look at, and when a scan is refused (docs/quality.md says why these)."""

    least_fit: float = 0.2
    """Fit to the template, 0-1, below which a scan is refused: no adult's head, or not where its header says."""
    least_contrast: float = 0.1
    """Standard deviations of the deep brain by which fluid must differ from grey matter in the direction of its sequence, and white matter
    of T1w from grey; else refused."""
    least_preservation: float = 0.85
    """Correlation of gradient magnitudes with the scan below which an image is flagged."""
    least_registration: float = 0.3
    """Fit to the template, 0-1, below which an image is flagged."""
    least_coverage: float = 0.97
    """Part of the aligned template's brain inside the field of view below which an image is flagged."""
    least_held: float = 0.97
    """Part of the brain inside the working grid below which an image is flagged: the model saw only that part."""
    brain_ml: tuple[float, float] = (800.0, 2000.0)
    """Volumes of the brain mask, in ml, between which nothing is flagged: adults."""
    most_disagreement: float = 0.03
    """Standard deviation of the planes' estimates, unit intensity, above which an image is flagged."""
    most_bright: float = 0.01
    """Part of the brain above unit intensity 1.25 above which an image is flagged."""
    most_background: float = 0.2
    """Intensity of the air around the head, unit intensity, above which an image is flagged: something was added to its intensities."""

    def __post_init__(self) -> None:
        for key in ("least_fit", "least_registration", "least_coverage", "least_preservation"):
            _require(0 <= getattr(self, key) <= 1, f"quality.{key}", getattr(self, key), "0 to 1")
        low, high = self.brain_ml
        _require(0 <= low < high, "quality.brain_ml", self.brain_ml, "two volumes in ml, the smaller first")
        for key in ("most_disagreement", "most_bright", "most_background"):
            _require(getattr(self, key) >= 0, f"quality.{key}", getattr(self, key), "0 or more")


@dataclass(frozen=True)
class EvaluateConfig:
    """Comparison of methods (`mmh evaluate`)."""

    subjects: Literal["auto", "travelers", "test", "all"] = "auto"
    """Who is scored: `travelers`, subjects scanned at several sites; `test`, the split; `all`. `auto` takes travelers where there are some,
    else the test split if it is large enough for the probes, else all. Baselines are fitted on the train split in any case."""
    draws: int = 1000
    """Bootstrap draws of subjects for an interval."""
    cnn: Literal["some", "all", "none"] = "some"
    """Whose images networks judge, too (site probes, the tissue U-Net): `some`, raw, N4 + histogram matching and the archives; each
    probe (trained anew, frozen) takes 1 to 3 CPU seconds per image, most of the time of an evaluation."""
    seed: int = 0
    """Seed of folds, probes, clusterings and draws."""
    label_table: Literal["auto", "freesurfer", "dlmuse", "tissues", "bids"] = "auto"
    """How label maps (`*_dseg.nii.gz`) number the tissues: `freesurfer`; `dlmuse`; `tissues`, 1 CSF, 2 GM, 3 WM; `bids`, 1 GM, 2 WM, 3 CSF.
    `auto` goes by `desc-` in their names, and takes unnamed maps of 1, 2 and 3 for `tissues` where the scan's intensities agree."""

    def __post_init__(self) -> None:
        _require(self.draws >= 100, "evaluate.draws", self.draws, "100 or more")


@dataclass(frozen=True)
class PromoteConfig:
    """When a model takes another's alias (`mmh promote`): paired differences over the subjects that both were scored on."""

    improve: tuple[str, ...] = ("site_probe", "site_probe_cnn", "truth_nrmse", "psnr")
    """Measures of which at least one, in one sequence, must be better: the 95 % interval of the difference beyond 0, p at most .05. Not
    `w1`: matching histograms makes it small by definition."""
    keep: tuple[str, ...] = (
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
    """Measures of which a loss must be excluded, in every sequence: the interval's worse end stays within the margin."""
    watch: tuple[str, ...] = (
        "site_probe",
        "site_probe_cnn",
        "site_probe_pattern",
        "site_probe_style",
        "subject_nearest",
        "age_mae",
    )
    """Measures of which no loss may be shown: the interval does not lie wholly on the worse side. For figures that are yes or no for an
    image, or noisy: few people cannot exclude a loss of the margin even between a model and itself."""
    margin: float = 0.05
    """How much worse still passes for `keep`, as a share of the present holder's value (of 1, where closer to 1 is better; of .1 for an
    AUC)."""
    least_subjects: int = 6
    """Subjects below which nothing is promoted; fewer than six cannot reach p of .05."""

    def __post_init__(self) -> None:
        _require(bool(self.improve), "promote.improve", self.improve, "at least one measure")
        _require(0 <= self.margin < 1, "promote.margin", self.margin, "a share in 0-1")
        _require(self.least_subjects >= 2, "promote.least_subjects", self.least_subjects, "2 or more")


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow."""

    uri: str | None = None
    """Tracking URI; otherwise MLFLOW_TRACKING_URI, otherwise sqlite:///mlflow.db with artifacts in ./mlruns."""
    experiment: str = "mmh-ray"
    """Experiment name."""
    model_name: str = "mmh-global"
    """Registered model name."""
    alias: str = "champion"
    """Alias set on the new version."""


@dataclass(frozen=True)
class Config:
    """Everything a run can be told; a section per command."""

    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    manifest: ManifestConfig = field(default_factory=ManifestConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    restyle: RestyleConfig = field(default_factory=RestyleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    style: StyleConfig = field(default_factory=StyleConfig)
    harmonize: HarmonizeConfig = field(default_factory=HarmonizeConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    promote: PromoteConfig = field(default_factory=PromoteConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        fits = self.harmonize.space == "native" or self.prepare.register
        _require(fits, "prepare.register", self.prepare.register, "true with harmonize.space=template")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (none: all defaults) and apply `section.key=value` overrides, last one wins.

    Raises
    ------
    ConfigError
        For an unreadable file, an unknown key (the valid ones are listed) or a value of the wrong type.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{path}: {error}", "a readable YAML file", "Check the path and its indentation."
            ) from error
    for override in overrides:
        key, found, value = override.partition("=")
        if not found:
            raise ConfigError(f"override {override!r}", "section.key=value", "Write for example train.steps=100.")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"override {override!r}: {error}", "a YAML value after =", "Quote or close it."
            ) from error
        _set(tree, key.strip().split("."), parsed)
    return from_dict(Config, tree)


def from_dict(cls: type, tree: Any, prefix: str = "") -> Any:
    """Build a config dataclass from nested mappings, refusing unknown keys and wrong types."""
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{prefix or 'the file'}={tree!r}", "a mapping of keys to values", "Indent its keys below it."
        )
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"Did you mean {prefix}{close[0]}?" if close else "Remove it."
            valid = ", ".join(f"{prefix}{name}" for name in hints)
            raise ConfigError(f"unknown key {prefix}{key}", f"one of {valid}", hint)
    values = {key: _coerce(hints[key], value, f"{prefix}{key}") for key, value in tree.items()}
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict (tuples become lists) that YAML, JSON and :func:`from_dict` take."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def flatten(config: Any) -> dict[str, Any]:
    """Dotted keys to leaf values, as MLflow parameters want them."""

    def walk(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in tree.items():
            flat |= walk(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return flat

    return walk(to_dict(config), "")


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override of {'.'.join(keys)}", "a section above the key", "Check the dotted key.")
    tree[keys[-1]] = value


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """Value as the annotated type; ints pass for floats, lists for tuples, one text for a tuple of one."""
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _coerce(arguments[0], value, key)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(_coerce(arguments[0], item, f"{key}[]") for item in value)
        if arguments == (str, Ellipsis) and isinstance(value, str):
            return (value,)
    elif hint is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):  # YAML 1.1 reads 2e-3 as a string
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = " or ".join(map(repr, arguments)) if origin is Literal else str(getattr(hint, "__name__", hint))
    raise ConfigError(f"{key}={value!r}", name, f"Change {key} in the YAML file or by {key}=VALUE.")
