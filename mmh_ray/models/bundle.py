"""The model bundle: a folder with everything needed to harmonize, in JSON and safetensors; nothing is unpickled.

::

    bundle/
      config.json            settings, sequences, schedule, unified domain, provenance, checksum of the weights
      denoiser.safetensors   every parameter and buffer of the GlobalHarmonizer
      MODEL_CARD.md          the same facts in words
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmh_ray.config import Config, from_dict, to_dict
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.imaging.intensity import QUANTILES, MonotoneMap
from mmh_ray.models.bundle_files import MOST_FACTS, MOST_HEADER, check_kinds, check_weights, parse_weights, read_part
from mmh_ray.models.bundle_format import OTHER_RELEASE, BundleFormat, write_weights
from mmh_ray.models.denoiser import make_scheduler
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.model_card import model_card
from mmh_ray.models.sanity import check_quantiles, check_statistics
from mmh_ray.provenance import code_version, hash_of

FACTS = "config.json"
WEIGHTS = "denoiser.safetensors"
SECTIONS = ("model", "grid", "prepare", "harmonize", "train")
"""Sections of the configuration that are stored with the model."""

MOST_PARAMETERS = 500_000_000
"""Largest number of parameters: ten times that of a model at 1 mm."""
SCHEDULE_FACTS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "rescale_betas_zero_snr",
    "clip_sample",
    "set_alpha_to_one",
)
"""Facts of the schedule that every bundle has."""
MOST_SCHEDULE_FACTS = 100
"""Largest number of facts of the schedule."""

_COPY_OR_TRAIN = "Copy the bundle again, or train the model again."
_TRAIN_AGAIN = "Train again, with lower learning rates."
_FORMAT = BundleFormat(
    kind="global",
    version=7,
    noun="bundle",
    facts_file=FACTS,
    facts={
        "code_version": str,
        "data_hash": str,
        "sequences": list,
        "training": dict,
        "config": dict,
        "schedule": dict,
        "unified_domain": dict,
        "levels": dict,
        "weights_sha256": str,
    },
    rebuild=_COPY_OR_TRAIN,
)


@dataclass(frozen=True)
class Bundle:
    """A model with its settings and facts.

    Attributes
    ----------
    loading:
        The model, once it is loaded: see :attr:`model`.
    config:
        The bundle's sections (:data:`SECTIONS`); the other sections have their defaults.
    quantiles:
        ``(S, 2, Q)``: for each sequence the quantile function of the initial unified domain, and the tissue quantiles,
        in unit intensity.
    hash:
        SHA-256 over settings, facts and weights, without the model card.
    facts:
        Content of ``config.json``.
    """

    loading: Future[GlobalHarmonizer]
    config: Config
    quantiles: Tensor
    hash: str
    facts: dict[str, Any]

    @property
    def model(self) -> GlobalHarmonizer:
        """The model in evaluation mode, float32; waits until it is loaded. Raises ModelError if loading failed."""
        return self.loading.result()

    def sequence_index(self, suffix: str) -> int:
        """Index of a BIDS suffix among the model's sequences; ModelError for any other suffix."""
        sequences = self.config.model.sequences
        if suffix not in sequences:
            expected = f"one of {', '.join(sequences)}"
            raise ModelError(f"sequence {suffix!r}", expected, "Use a model that was trained on this sequence.")
        return sequences.index(suffix)


def save_bundle(
    path: str | Path,
    model: GlobalHarmonizer,
    config: Config,
    *,
    quantiles: Tensor,
    data_hash: str,
    training: Mapping[str, Any],
) -> None:
    """Write a bundle, whole or not at all; an earlier bundle at the same path is replaced.

    Parameters
    ----------
    quantiles:
        ``(S, 2, Q)`` quantile function and tissue quantiles per sequence, with which ``model`` was made.
    data_hash:
        Hash of the prepared training data.
    training:
        JSON-able facts about the training; the model card shows ``steps`` (int), ``validation`` (name to value) and
        ``counts`` (site to sequence to number of volumes). No dates: the same training should give the same hash.

    Raises
    ------
    ModelError
        If ``path`` exists and is not a bundle, or the model has weights that are not finite.
    """
    path = Path(path)
    with _FORMAT.new_folder(path) as folder:
        state = _plain_weights(model)
        check_weights(state, f"the model for {path}", _TRAIN_AGAIN)
        check_statistics(model, f"the model for {path}", _TRAIN_AGAIN)
        settings = to_dict(config)
        sequences = list(config.model.sequences)
        facts: dict[str, Any] = {
            "code_version": code_version(),
            "data_hash": data_hash,
            "sequences": sequences,
            "training": dict(training),
            "config": {section: settings[section] for section in SECTIONS},
            "schedule": _schedule_facts(model),
            "unified_domain": dict(zip(sequences, quantiles.tolist(), strict=True)),
            "levels": {sequences[index]: _knots(curve) for index, curve in model.levels.items()},
            "weights_sha256": write_weights(folder / WEIGHTS, state),
        }
        _FORMAT.write_description(folder, facts, model_card(facts))


def _knots(curve: MonotoneMap) -> list[list[float]]:
    """The knots of a curve as JSON: source intensities and target intensities."""
    return [curve.source.tolist(), curve.target.tolist()]


def _plain_weights(model: GlobalHarmonizer) -> dict[str, Tensor]:
    """Parameters and buffers for safetensors: float32 (integers stay integers), contiguous, on the CPU."""
    state = {}
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().cpu()
        if plain.is_floating_point():
            plain = plain.float()
        state[name] = plain.contiguous()
    return state


def _schedule_facts(model: GlobalHarmonizer) -> dict[str, Any]:
    """The settings of the model's diffusers scheduler, without private entries."""
    scheduler: Any = model.scheduler  # diffusers hides its attributes from type checkers
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def load_bundle(path: str | Path, device: str | torch.device = "cpu", background: Executor | None = None) -> Bundle:
    """Read an untrusted bundle: opens no file outside its folder, and builds no model larger than the weights file.

    Parameters
    ----------
    background:
        Loads the model, which takes seconds, while the caller continues with the settings. Errors of the model are then
        raised by :attr:`Bundle.model`. None: load the model before returning.

    Raises
    ------
    ModelError
        If the folder or a file is missing or is not a regular file; if format, facts or settings are unknown or out of
        bounds; if the schedule does not match the settings; if weights are damaged, do not fit or are not finite.
    """
    path = Path(path)
    description = _read_description(path)
    if background is None:
        loading: Future[GlobalHarmonizer] = Future()
        loading.set_result(_load_model(path, description, device))
    else:
        loading = background.submit(_load_model, path, description, device)
    facts = description.facts
    return Bundle(loading, description.config, description.quantiles, hash_of(facts), facts)


def _load_model(path: Path, description: _Description, device: str | torch.device) -> GlobalHarmonizer:
    """The model of a bundle with its weights, in evaluation mode."""
    config = description.config
    model = _empty_model(config, description.quantiles)
    model.levels = description.levels
    content = _read_weights(path, model, description.facts)
    state = parse_weights(content, path / WEIGHTS, _COPY_OR_TRAIN)
    # Tensors from safetensors may be unaligned in memory, which is slow; copies are aligned.
    copies = {name: tensor.clone() for name, tensor in state.items()}
    try:
        model.load_state_dict(copies, assign=True)
    except (RuntimeError, ValueError) as error:
        received = f"{path / WEIGHTS}: {' '.join(str(error).split())[:400]}"
        raise ModelError(received, f"the parameters of the model section of {FACTS}", _COPY_OR_TRAIN) from error
    model.denoiser.to(memory_format=torch.channels_last)
    model.scheduler = _checked_scheduler(path, config, description.facts["schedule"])
    check_statistics(model, str(path / WEIGHTS), _COPY_OR_TRAIN)
    return model.eval().to(device)


def bundle_hash(path: str | Path) -> str:
    """Hash of a bundle without loading its weights: their checksum is among the hashed facts."""
    return hash_of(_read_description(Path(path)).facts)


def bundle_files(path: str | Path) -> dict[str, bytes]:
    """Names and contents of the files that :func:`load_bundle` needs, to be sent to another machine.

    Checks facts and weights as :func:`load_bundle` does, except the values of the weights.
    """
    path = Path(path)
    description = _read_description(path)
    model = _empty_model(description.config, description.quantiles)
    weights = _read_weights(path, model, description.facts)
    return {FACTS: read_part(path, FACTS, MOST_FACTS, _COPY_OR_TRAIN), WEIGHTS: weights}


@dataclass(frozen=True)
class _Description:
    """The checked facts of a bundle, parsed: see :class:`Bundle`, and :class:`GlobalHarmonizer` for ``levels``."""

    facts: dict[str, Any]
    config: Config
    quantiles: Tensor
    levels: dict[int, MonotoneMap]


def _read_description(path: Path) -> _Description:
    """Read, check and parse the facts of a bundle."""
    facts = _FORMAT.read_facts(path)
    place = str(path / FACTS)
    try:
        config: Config = from_dict(Config, facts["config"])
        domains = [facts["unified_domain"][sequence] for sequence in config.model.sequences]
        quantiles = torch.tensor(domains, dtype=torch.float32)
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
        received = f"{place}: {type(error).__name__}: {str(error)[:1000]}"
        expected = f"settings and a unified domain that mmh-ray {code_version()} knows"
        raise ModelError(received, expected, OTHER_RELEASE) from error
    sequences = list(config.model.sequences)
    check_kinds(facts["config"], dict.fromkeys(SECTIONS, dict), f"{place}: config", _COPY_OR_TRAIN)
    check_kinds(facts["unified_domain"], dict.fromkeys(sequences, list), f"{place}: unified_domain", _COPY_OR_TRAIN)
    if facts["sequences"] != sequences:
        received = f"{place}: sequences={str(facts['sequences'])[:100]}"
        raise ModelError(received, f"the sequences of its settings, {sequences}", _COPY_OR_TRAIN)
    _check_counts(facts["training"].get("counts", {}), place)
    if quantiles.shape != (len(sequences), 2, len(QUANTILES)):
        received = f"{place}: a unified domain of shape {tuple(quantiles.shape)}"
        raise ModelError(received, f"two functions of {len(QUANTILES)} quantiles a sequence", _COPY_OR_TRAIN)
    check_quantiles(quantiles, f"{place}: unified_domain", _COPY_OR_TRAIN)
    return _Description(facts, config, quantiles, _read_levels(facts["levels"], sequences, place))


def _read_levels(recorded: dict[str, Any], sequences: list[str], place: str) -> dict[int, MonotoneMap]:
    """Parse the curve of each sequence that has one; ModelError unless the curves increase."""
    expected = f"sequence to two lists of at most {len(QUANTILES)} intensities, increasing and not falling"
    if not set(recorded) <= set(sequences):
        raise ModelError(f"{place}: levels={str(recorded)[:100]}", expected, _COPY_OR_TRAIN)
    levels = {}
    for sequence, knots in recorded.items():
        try:
            curve = torch.tensor(knots, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ModelError(f"{place}: levels of {sequence}: {str(error)[:200]}", expected, _COPY_OR_TRAIN) from error
        if curve.ndim != 2 or len(curve) != 2 or not 2 <= curve.shape[1] <= len(QUANTILES):
            raise ModelError(f"{place}: levels of {sequence} of shape {tuple(curve.shape)}", expected, _COPY_OR_TRAIN)
        check_quantiles(curve, f"{place}: levels of {sequence}", _COPY_OR_TRAIN)
        source, target = curve.numpy()
        if not (np.diff(source) > 0).all():
            raise ModelError(f"{place}: levels of {sequence} from intensities that repeat", expected, _COPY_OR_TRAIN)
        levels[sequences.index(sequence)] = MonotoneMap(source, target)
    return levels


def _check_counts(counts: Any, place: str) -> None:
    """ModelError unless the counts of training volumes map site to sequence to number."""
    if isinstance(counts, dict) and all(isinstance(site_counts, dict) for site_counts in counts.values()):
        return
    received = f"{place}: training.counts={str(counts)[:100]}"
    raise ModelError(received, "site to sequence to number of volumes", _COPY_OR_TRAIN)


def _empty_model(config: Config, quantiles: Tensor) -> GlobalHarmonizer:
    """Build the model without the values of its weights, to know its size before memory is allocated."""
    model = GlobalHarmonizer(config.model, config.train, quantiles, has_values=False)
    parameters = _numbers_in(model)
    if parameters > MOST_PARAMETERS:
        received = f"settings of a model with {parameters / 1e6:.0f} million parameters"
        raise ModelError(received, f"at most {MOST_PARAMETERS / 1e6:.0f} million", "Use a smaller model.")
    return model


def _numbers_in(model: GlobalHarmonizer) -> int:
    """Number of values in the parameters and buffers of a model."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _read_weights(path: Path, model: GlobalHarmonizer, facts: Mapping[str, Any]) -> bytes:
    """Read the weights file; ModelError if it is larger than float32 weights of this model, or its checksum differs."""
    most_bytes = 4 * _numbers_in(model) + MOST_HEADER
    return _FORMAT.read_weights(path, WEIGHTS, most_bytes, facts["weights_sha256"])


def _checked_scheduler(path: Path, config: Config, recorded: Mapping[str, Any]) -> Any:
    """Make the scheduler from the settings, and check that the recorded schedule is the same.

    The scheduler is not built from the record: diffusers' ``from_config`` treats a string as a folder or as a name on a
    hub. Other releases of diffusers record more than :data:`SCHEDULE_FACTS`; those values are ignored.
    """
    scheduler: Any = make_scheduler(config.model)
    place = f"{path / FACTS}: schedule"
    of_settings = {key: scheduler.config[key] for key in SCHEDULE_FACTS}
    of_bundle = {key: recorded.get(key) for key in SCHEDULE_FACTS}
    if of_bundle != of_settings:
        received = f"{place}={str(of_bundle)[:400]}"
        raise ModelError(received, f"the schedule of its settings, {of_settings}", _COPY_OR_TRAIN)
    nested = [key for key, value in recorded.items() if isinstance(value, list | dict)]
    if nested or len(recorded) > MOST_SCHEDULE_FACTS:
        names = ", ".join(sorted(nested))
        what = names[:200] or f"{len(recorded)} keys"
        raise ModelError(f"{place} with {what}", f"at most {MOST_SCHEDULE_FACTS} plain values", _COPY_OR_TRAIN)
    return scheduler
