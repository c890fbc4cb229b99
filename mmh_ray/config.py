"""Typed configuration: frozen dataclasses, YAML files, dotted overrides, unknown keys refused.

One :class:`Config` holds a section per command, so that one YAML file can drive a whole run::

    config = load_config("configs/demo.yaml", ["train.steps=10", "grid.spacing_mm=2"])

Every number has bounds, in its type: generous ones, beyond which a value can only be a mistake or an attack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from mmh_ray.errors import ConfigError
from mmh_ray.files import read_bytes
from mmh_ray.settings import Items, Matching, Range, Section, require
from mmh_ray.settings import flatten as flatten
from mmh_ray.settings import from_dict as from_dict
from mmh_ray.settings import to_dict as to_dict
from mmh_ray.yaml_text import MOST_BYTES, load_yaml

Count = Annotated[int, Range(1, 10**7)]
"""How many, at least one."""
CountOrNone = Annotated[int, Range(0, 10**7)]
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 10**6)]
"""Of a loss, or any other number that only grows less sensible the larger it is."""
Rate = Annotated[float, Range(1e-12, 10)]
"""Of learning."""
Seed = Annotated[int, Range(0, 2**31 - 1)]
"""What every library's random numbers can start from."""
Named = Annotated[str, Matching(r".{1,500}", "a text of 1 to 500 characters")]
FileName = Annotated[str, Matching(r"(?!\.{1,2}$)[^/\\]{1,200}", "a name of at most 200 characters without / and \\")]

Place = Annotated[str, Matching(r".+", "a text that is not empty")]
"""Path, URI or name."""
SiteName = Annotated[str, Matching(r".*\S.*", "a name that is not empty")]
Suffix = Annotated[str, Matching(r"[A-Za-z0-9]{1,64}", "a BIDS suffix such as T1w")]
Plane = Annotated[str, Matching(r"axial|coronal|sagittal", "axial, coronal or sagittal")]
ModelName = Annotated[str, Matching(r"[^/:@]{1,200}", "a name of at most 200 characters without /, : and @")]
Alias = Annotated[str, Matching(r"[A-Za-z0-9_-]{1,200}", "letters, digits, - and _")]
Strength = Annotated[float, Range(0, 10)]
Beta = Annotated[float, Range(1e-8, 0.999)]
Side = Annotated[int, Range(8, 1024)]
Volume = Annotated[float, Range(0, 10**6)]
"""In ml."""

MOST_VOXELS = 512**3
"""Most voxels of the working grid: 16 times those of a head at 1 mm."""


@dataclass(frozen=True)
class PhantomConfig(Section):
    """A simulated multi-site archive with known truth (`mmh phantom`)."""

    sites: Annotated[int, Range(1, 8)] = 4
    """Scanners to simulate, at most 8."""
    subjects_per_site: CountOrNone = 8
    """Subjects scanned at one site only."""
    travelers: CountOrNone = 6
    """Subjects scanned at every site; never used for training."""
    spacing_mm: Annotated[float, Range(0.5, 8)] = 3.0
    """Isotropic voxel edge in mm."""
    lesions: Share = 0.25
    """Share of subjects with white-matter lesions, 0-1."""
    seed: Seed = 0
    """Same seed, same bytes."""


@dataclass(frozen=True)
class ManifestConfig(Section):
    """What the table of images records (`mmh manifest`)."""

    site_pattern: Place | None = None
    """Regular expression with a group named `site`, tried on the relative path when no table or sidecar names the site."""
    val_fraction: Share = 0.1
    """Share of subjects in split `val`."""
    test_fraction: Share = 0.1
    """Share of subjects in split `test`. Subjects scanned at more than one site are always `test`."""
    seed: Seed = 0
    """Seed of the split by subject."""

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.val_fraction + self.test_fraction
        require(total < 1, "manifest.val_fraction + manifest.test_fraction", total, "shares below 1 in all")


@dataclass(frozen=True)
class GridConfig(Section):
    """The working grid: canonical RAS axes, isotropic, one shape for every volume."""

    spacing_mm: Annotated[float, Range(0.1, 30)] = 3.0
    """Voxel edge in mm."""
    shape: tuple[Side, Side, Side] = (56, 72, 56)
    """Voxels along R, A and S."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(n % 8 == 0 for n in self.shape), "grid.shape", self.shape, "three multiples of 8")
        fits = math.prod(self.shape) <= MOST_VOXELS
        require(fits, "grid.shape", self.shape, f"at most {MOST_VOXELS} voxels")


@dataclass(frozen=True)
class PrepareConfig(Section):
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
    n4_iterations: Annotated[tuple[Annotated[int, Range(0, 1000)], ...], Items(1, 8)] = (30, 20, 10)
    """Iterations per fitting level."""
    upper_percentile: Annotated[float, Range(50, 100)] = 99.5
    """Percentile of the brain mapped to 1; zero stays zero."""
    shard_volumes: Annotated[int, Range(1, 10_000)] = 64
    """Volumes per Parquet shard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.upper_percentile > 50, "prepare.upper_percentile", self.upper_percentile, "above 50")


@dataclass(frozen=True)
class SimulationConfig(Section):
    """The people and scanners that a model learns from where it is trained without a cohort (`mmh train-global` without PREPARED)."""

    label_maps: Place | None = None
    """Folder of whole-head label maps `*_dseg.nii.gz` in FreeSurfer's numbering (502 to 530 outside the brain, as SynthSeg has them); the
    last fifth of them, by name, is for validation. Without it, people are made of ICBM-152 alone, which knows no deep nuclei."""


@dataclass(frozen=True)
class RestyleConfig(Section):
    """How strongly the copy of a volume that makes the condition is re-styled (METHOD: style randomisation)."""

    curve: Strength = 0.5
    """Strength of the random monotone intensity curve; 0 leaves intensities alone."""
    gamma: Strength = 0.4
    """Standard deviation of log-gamma."""
    bias: Strength = 0.1
    """Standard deviation of the log of the smooth bias field."""
    blur_mm: Annotated[float, Range(0, 50)] = 2.0
    """Largest full width at half maximum of the added point spread, in mm."""
    noise: Strength = 0.04
    """Largest standard deviation of the added Rician noise, brain 99.5th percentile = 1."""
    coarsen: Share = 0.3
    """Probability of a coarser resolution (up to 2x) along one random axis."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The denoiser and its condition."""

    sequences: Annotated[tuple[Suffix, ...], Items(1, 32, once=True)] = ("T1w", "T2w")
    """BIDS suffixes the model harmonizes; every other suffix is refused by name."""
    distances: Annotated[tuple[Annotated[int, Range(1, 512)], ...], Items(1, 16)] = (1, 2, 4, 8, 16)
    """Distances, in voxels, of the differences that make the condition."""
    slab: Annotated[int, Range(1, 63)] = 3
    """Neighbouring slices denoised together (odd)."""
    patch: Annotated[int, Range(1, 8)] = 2
    """Side of the square of pixels that one network pixel stands for (pixel unshuffle)."""
    channels: Annotated[tuple[Annotated[int, Range(8, 2048)], ...], Items(1, 6)] = (32, 64, 96)
    """Channels of the U-Net levels."""
    layers: Annotated[int, Range(1, 8)] = 1
    """Residual blocks per level."""
    attention: bool = False
    """Self-attention at the coarsest level."""
    train_timesteps: Annotated[int, Range(2, 10_000)] = 1000
    """Length T of the diffusion schedule."""
    beta_start: Beta = 0.0015
    """First beta of the scaled-linear schedule."""
    beta_end: Beta = 0.0195
    """Last beta before the rescaling to zero terminal SNR."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.slab % 2 == 1, "model.slab", self.slab, "an odd number")
        require(all(n % 8 == 0 for n in self.channels), "model.channels", self.channels, "multiples of 8")
        require(self.beta_start <= self.beta_end, "model.beta_start", self.beta_start, "at most model.beta_end")


@dataclass(frozen=True)
class TrainConfig(Section):
    """Stage 1 training (`mmh train-global`)."""

    steps: Count = 400
    """Optimiser steps."""
    start_from: Named | None = None
    """Model whose weights are the first (`mmh-base`, a bundle folder, models:/NAME@ALIAS); None draws them. Its `model` settings must be
    these; the unified domain is the new one."""
    volumes_per_step: Annotated[int, Range(1, 10_000)] = 2
    """Slice groups, each of one volume, over all workers in a step; a multiple of twice the workers."""
    slabs_per_plane: Annotated[int, Range(1, 1000)] = 2
    """Slabs per plane in a group."""
    learning_rate: Rate = 3e-3
    """Peak learning rate of AdamW, which trains the first and last layer, embeddings, biases and norms; linear warm-up, cosine decay."""
    matrix_learning_rate: Rate = 0.02
    """Peak learning rate of Muon, which trains the weights between; the same warm-up and decay."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Range(0, 10)] = 1e-4
    """Weight decay of both."""
    clip_norm: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Gradient norm limit."""
    ema_decay: Annotated[float, Range(0, 0.999999)] = 0.99
    """Decay of the exponential moving average of the weights."""
    simulated_share: Share = 1.0
    """Share of groups that show simulated anatomies with a canonical noise-free target; the rest has the teacher's, the volume
    itself after histogram matching. At 1 the teacher serves only sequences that cannot be simulated."""
    terminal_share: Share = 0.8
    """Share of samples trained at the last timestep (pure noise), where sampling starts."""
    gradient_weight: Weight = 0.5
    """Weight of the gradient loss."""
    style_weight: Weight = 0.05
    """Weight of the style losses on slice groups (W1 of histograms, mean, standard deviation)."""
    consistency_weight: Weight = 1.0
    """Weight of the squared difference between what two simulated scanners' scans of one person become. Pairs lie side by side in the
    stream; one whose halves fall to different workers does not count."""
    domain_decay: Share = 0.95
    """Decay of the running unified-domain statistics."""
    validate_every: Count = 250
    """Steps between validations (fixed noise, fixed timesteps)."""
    checkpoint_every: Count = 250
    """Steps between checkpoints; a killed run loses at most this many."""
    validation_groups: Annotated[int, Range(1, 100_000)] = 8
    """Slice groups in a validation."""
    workers: Annotated[int, Range(1, 10_000)] = 1
    """Data-parallel training workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    wait_s: Annotated[float, Range(0, 10**6)] = 600.0
    """Seconds that training waits for room after a node was lost, or while other jobs hold the cluster, before it ends with the reason. It
    waits only where not even one worker fits; otherwise it goes on with fewer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast precision; bf16 only on GPU."""
    storage: Place = "runs"
    """Folder or URI for checkpoints."""
    run_name: FileName = "global"
    """Runs of the same name in the same storage resume."""
    seed: Seed = 0
    """Seed of initialisation, data order, styles and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.terminal_share > 0, "train.terminal_share", self.terminal_share, "a share above 0")
        divides = self.volumes_per_step % self.workers == 0
        require(divides, "train.volumes_per_step", self.volumes_per_step, "a multiple of train.workers")
        together = self.workers in self.worker_counts
        expected = "a multiple of 2 x train.workers, as two scans of one person go to one worker, or train.consistency_weight=0"
        require(together, "train.volumes_per_step", self.volumes_per_step, expected)
        require(self.precision == "fp32" or self.use_gpu, "train.precision", self.precision, "fp32 without a GPU")

    @property
    def worker_counts(self) -> list[int]:
        """`workers` and every smaller number of workers that could share out a step evenly; the largest first."""
        together = 2 if self.consistency_weight else 1
        return [count for count in range(self.workers, 0, -1) if self.volumes_per_step % (together * count) == 0]


@dataclass(frozen=True)
class TargetConfig(Section):
    """Stage 2, an adapter per target site and sequence on a frozen global model (`mmh train-target`)."""

    site: Annotated[tuple[SiteName, ...], Items(0, 10_000)] = ()
    """Sites to train adapters for, side by side; one name or a list."""
    images: Annotated[int, Range(0, 10**6)] = 0
    """Target images per sequence, drawn by `target.seed` from the site's training and validation images; 0 takes all, 3 is enough."""
    rank: Annotated[int, Range(1, 256)] = 4
    """Rank of the low-rank updates of the convolutions (LoRA: Hu et al., ICLR 2022)."""
    steps: Count = 100
    """Most optimiser steps."""
    slabs_per_plane: Annotated[int, Range(1, 1000)] = 4
    """Slabs per plane in a group; a step has two groups of the site and one of a source site."""
    sources: Annotated[int, Range(2, 10_000)] = 8
    """Images of other sites and the same sequence to move to the target; about a quarter of them serve validation alone."""
    restyles: Annotated[int, Range(1, 1000)] = 1
    """Random styles in which each target image goes through the global model."""
    learning_rate: Rate = 2e-3
    """Peak learning rate of AdamW; linear warm-up over a tenth of the steps, cosine decay."""
    reconstruction_weight: Weight = 1.0
    """Weight of the reconstruction of the site's own images (L1)."""
    gradient_weight: Weight = 0.5
    """Weight of the multi-scale gradient loss."""
    statistics_weight: Weight = 0.2
    """Weight of the distance of histogram, mean and standard deviation from the site's."""
    displacement_weight: Weight = 0.002
    """Weight of the style displacement loss, direction and magnitude; brought in slowly."""
    last_steps: Annotated[int, Range(1, 500)] = 10
    """Sampling steps, of the last ones, through which gradients flow."""
    validate_every: Count = 10
    """Steps between validations on images that are not trained on."""
    patience: Count = 3
    """Validations without a better score after which training stops; the best adapter is kept."""
    storage: Place = "runs"
    """Folder or URI below which `targets/SITE` is written."""
    seed: Seed = 0
    """Seed of styles, slices and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.site)) == len(self.site), "target.site", self.site, "each site once")
        require(self.images == 0 or self.images >= 3, "target.images", self.images, "3 or more, or 0 for all")


@dataclass(frozen=True)
class StyleConfig(Section):
    """The style encoder: which network looks at slices, and how its aggregator learns."""

    backbone: Place = "embedded"
    """`embedded` (ships inside the package); `hf-hub:OWNER/NAME`; a local folder with `open_clip_config.json` and weights; or the name of
    any open_clip model. Of open_clip models only the image tower is read."""
    weights: Place | None = None
    """For an open_clip name: a pretrained tag, a file, or `random` (fixed seed). The other backbones bring their own."""
    sha256: Named | None = None
    """SHA-256 that the weights file of an open_clip backbone must have, as it is logged; none takes any file."""
    slices: Annotated[int, Range(1, 1000)] = 12
    """Slices per plane, spread over the brain, of whole volumes; stage 2 compares slice groups (`target.slabs_per_plane`)."""
    alpha: Annotated[float, Range(0, 1000)] = 0.2
    """Weight of the fusion network beside the mean over planes."""
    checkpoint: bool = False
    """Gradient checkpointing: recompute the backbone's activations plane by plane instead of keeping them."""
    temperature: Annotated[float, Range(1e-6, 1000)] = 0.1
    """Temperature of the contrast between styles."""
    spread_weight: Weight = 1.0
    """Weight of the term that keeps the style vectors apart while the aggregator learns."""
    steps: Count = 200
    """Optimiser steps of the aggregator."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the aggregator."""


@dataclass(frozen=True)
class HarmonizeConfig(Section):
    """Batch inference (`mmh harmonize`); `mmh train-target` trains adapters on the same sampling."""

    steps: Annotated[int, Range(1, 500)] = 1
    """Sampling steps from noise (DDIM)."""
    inversion_depth: Annotated[int, Range(0, 500)] = 0
    """DDIM inversion steps from the source instead of noise, as published; 0 starts from noise."""
    fusion: Literal["mean", "median"] = "mean"
    """How the planes' estimates of a voxel are fused."""
    planes: Annotated[tuple[Plane, ...], Items(1, 3, once=True)] = ("axial", "coronal", "sagittal")
    """Planes to run."""
    detail: Literal["project", "model"] = "project"
    """`project`: curve and field from the model, all else from the scan; `model`: the model's image itself."""
    space: Literal["native", "template"] = "native"
    """Grid of the harmonized image: the scan's own, or the 1 mm grid of ICBM-152 2009a (symmetric)."""
    intensity: Literal["unit", "source"] = "unit"
    """`unit`: about 1 for bright tissue at every site; `source`: `unit * (high - low) + low`, with the scan's intensities `low` and `high`
    at unit intensity 0 and 1, so that its scale is kept and only its contrast is that of the unified domain."""
    batch_slabs: Annotated[int, Range(1, 100_000)] = 32
    """Slabs per forward pass."""
    seed: Seed = 0
    """Seed of the one noise tensor that every volume shares."""
    slots: Annotated[int, Range(0, 100_000)] = 0
    """Actors; 0 takes one per GPU, or one per two CPUs."""
    timeout_s: Annotated[float, Range(1e-3, 1e8)] = 600.0
    """Seconds that an image may take: then its actor is ended and the image fails; the others go on."""


@dataclass(frozen=True)
class QualityConfig(Section):
    """When a harmonized image is flagged for a person to look at, and when a scan is refused (docs/quality.md says why these)."""

    least_fit: Share = 0.2
    """Fit to the template, 0-1, below which a scan is refused: no adult's head, or not where its header says."""
    least_contrast: Annotated[float, Range(-1000, 1000)] = 0.1
    """Standard deviations of the deep brain by which fluid must differ from grey matter in the direction of its sequence, and white matter
    of T1w from grey; else refused."""
    least_preservation: Share = 0.85
    """Correlation of gradient magnitudes with the scan below which an image is flagged."""
    least_registration: Share = 0.3
    """Fit to the template, 0-1, below which an image is flagged."""
    least_coverage: Share = 0.97
    """Part of the aligned template's brain inside the field of view below which an image is flagged."""
    least_held: Share = 0.97
    """Part of the brain inside the working grid below which an image is flagged: the model saw only that part."""
    brain_ml: tuple[Volume, Volume] = (800.0, 2000.0)
    """Volumes of the brain mask, in ml, between which nothing is flagged: adults."""
    most_disagreement: Annotated[float, Range(0, 1000)] = 0.03
    """Standard deviation of the planes' estimates, unit intensity, above which an image is flagged."""
    most_bright: Share = 0.01
    """Part of the brain above unit intensity 1.25 above which an image is flagged."""
    most_background: Annotated[float, Range(0, 1000)] = 0.2
    """Intensity of the air around the head, unit intensity, above which an image is flagged: something was added to its intensities."""
    most_mask_offset_mm: Annotated[float, Range(0, 1000)] = 5.0
    """Distance of a given brain mask from the aligned template's brain above which an image is flagged."""
    most_second_head: Share = 0.2
    """Volume of the second largest part of the foreground, as a share of the largest, above which an image is flagged."""
    most_spikes: Annotated[float, Range(0, 1e9)] = 10.0
    """Isolated voxels far out of range in the brain above which an image is flagged."""
    most_wrapped: Annotated[float, Range(0, 1e12)] = 50.0
    """Steps between neighbours from the brightest to the darkest, as integers make that ran over, above which a scan is refused."""
    most_fill_step: Annotated[float, Range(0, 1e12)] = 5.0
    """Distance of interpolated fill values from the scan, in its ranges, above which an image is flagged."""
    most_fluid_mm: Annotated[float, Range(0, 1000)] = 13.0
    """Radius of the largest ball of fluid in the brain above which an image is flagged: of larger ones contrast is lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.brain_ml
        require(low < high, "quality.brain_ml", self.brain_ml, "two volumes in ml, the smaller first")


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Comparison of methods (`mmh evaluate`)."""

    subjects: Literal["auto", "travelers", "test", "all"] = "auto"
    """Who is scored: `travelers`, subjects scanned at several sites; `test`, the split; `all`. `auto` takes travelers where there are some,
    else the test split if it is large enough for the probes, else all. Baselines are fitted on the train split in any case."""
    draws: Annotated[int, Range(100, 10**6)] = 1000
    """Bootstrap draws of subjects for an interval."""
    cnn: Literal["some", "all", "none"] = "some"
    """Whose images networks judge, too (site probes, the tissue U-Net): `some`, raw, N4 + histogram matching and the archives; each
    probe (trained anew, frozen) takes 1 to 3 CPU seconds per image, most of the time of an evaluation."""
    seed: Seed = 0
    """Seed of folds, probes, clusterings and draws."""
    label_table: Literal["auto", "freesurfer", "dlmuse", "tissues", "bids"] = "auto"
    """How label maps (`*_dseg.nii.gz`) number the tissues: `freesurfer`; `dlmuse`; `tissues`, 1 CSF, 2 GM, 3 WM; `bids`, 1 GM, 2 WM, 3 CSF.
    `auto` goes by `desc-` in their names, and takes unnamed maps of 1, 2 and 3 for `tissues` where the scan's intensities agree."""


@dataclass(frozen=True)
class PromoteConfig(Section):
    """When a model takes another's alias (`mmh promote`): paired differences over the subjects that both were scored on."""

    improve: Annotated[tuple[Named, ...], Items(1, 1000)] = ("site_probe", "site_probe_cnn", "truth_nrmse", "psnr")
    """Measures of which at least one, in one sequence, must be better: the 95 % interval of the difference beyond 0, p at most .05. Not
    `w1`: matching histograms makes it small by definition."""
    keep: Annotated[tuple[Named, ...], Items(0, 1000)] = (
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
    watch: Annotated[tuple[Named, ...], Items(0, 1000)] = (
        "site_probe",
        "site_probe_cnn",
        "site_probe_pattern",
        "site_probe_style",
        "subject_nearest",
        "age_mae",
    )
    """Measures of which no loss may be shown: the interval does not lie wholly on the worse side. For figures that are yes or no for an
    image, or noisy: few people cannot exclude a loss of the margin even between a model and itself."""
    margin: Share = 0.05
    """How much worse still passes for `keep`, as a share of the present holder's value (of 1, where closer to 1 is better; of .1 for an
    AUC)."""
    least_subjects: Annotated[int, Range(2, 10**6)] = 6
    """Subjects below which nothing is promoted; fewer than six cannot reach p of .05."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin < 1, "promote.margin", self.margin, "a share below 1")


@dataclass(frozen=True)
class TrackingConfig(Section):
    """MLflow."""

    uri: Place | None = None
    """Tracking URI; otherwise MLFLOW_TRACKING_URI, otherwise sqlite:///mlflow.db with artifacts in ./mlruns."""
    experiment: Named = "mmh-ray"
    """Experiment name."""
    model_name: ModelName = "mmh-global"
    """Registered model name."""
    alias: Alias = "champion"
    """Alias set on the new version."""


@dataclass(frozen=True)
class Config:
    """Everything a run can be told; a section per command."""

    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    manifest: ManifestConfig = field(default_factory=ManifestConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
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
        require(fits, "prepare.register", self.prepare.register, "true with harmonize.space=template")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (none: all defaults) and apply `section.key=value` overrides, last one wins.

    Raises
    ------
    ConfigError
        For a file that cannot be read, is no regular file or larger than a settings file can be; for what is no plain YAML
        (:func:`mmh_ray.yaml_text.load_yaml`); for an unknown key (the valid ones are listed), a value of the wrong type or out of bounds.
    """
    tree: dict[str, Any] = {} if path is None else _read(path)
    for override in overrides:
        key, found, value = override.partition("=")
        if not found:
            raise ConfigError(f"override {override[:200]!r}", "section.key=value", "Write for example train.steps=100.")
        try:
            parsed = load_yaml(value)
        except yaml.YAMLError as error:
            received = f"override {override[:200]!r}: {error}"
            raise ConfigError(received, "a YAML value after =", "Quote or close it.") from error
        _set(tree, key.strip().split("."), parsed)
    return from_dict(Config, tree)


def _read(path: str | Path) -> dict[str, Any]:
    """Sections of a YAML file; empty for an empty one."""
    try:
        tree = load_yaml(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError, yaml.YAMLError) as error:
        received = f"{path}: {error}"
        raise ConfigError(received, "a readable YAML file", "Check the path and its indentation.") from error
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        received = f"{path}: a {type(tree).__name__}"
        raise ConfigError(received, "sections, each with its keys", "Write for example train: {steps: 100}.")
    return dict(tree)


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Put a value under dotted keys; a mapping is merged into what is there, which it may tell only a part of."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override of {'.'.join(keys)}", "a section above the key", "Check the dotted key.")
    last = keys[-1]
    known = tree.get(last)
    tree[last] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
