"""The model bundle: a folder with all it takes to harmonize, in JSON and safetensors; nothing pickled is ever loaded.

::

    bundle/
      config.json            settings, sequences, schedule, unified domain, provenance, checksum of the weights
      denoiser.safetensors   every parameter and buffer of the GlobalHarmonizer
      MODEL_CARD.md          the same facts in words
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mmh_ray.config import Config, from_dict, to_dict
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.imaging.intensity import QUANTILES
from mmh_ray.models.bundle_files import (
    MOST_FACTS,
    MOST_HEADER,
    check_kinds,
    check_weights,
    parse_weights,
    read_facts,
    read_part,
)
from mmh_ray.models.denoiser import make_scheduler
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.models.sanity import check_quantiles, check_statistics
from mmh_ray.provenance import code_version, hash_of, write_json

FORMAT = 6
"""Version of the bundle's layout that this code writes and reads."""
KIND = "global"
"""Kind of model that this code writes and reads."""
FACTS, WEIGHTS, CARD = "config.json", "denoiser.safetensors", "MODEL_CARD.md"
SECTIONS = ("model", "grid", "prepare", "harmonize", "train")
"""Sections of the configuration that travel with the model."""

MOST_PARAMETERS = 500_000_000
"""Most parameters of a model: ten times those of one at 1 mm."""
DECIDING = (
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
MOST_OF_SCHEDULE = 100
"""Most facts of it in all."""

_REBUILD = "Copy the bundle again or train anew."
_AGAIN = "Train again, with lower learning rates."
_KINDS = {
    "code_version": str,
    "data_hash": str,
    "sequences": list,
    "training": dict,
    "config": dict,
    "schedule": dict,
    "unified_domain": dict,
    "weights_sha256": str,
}
"""Facts of a bundle, besides its format and kind."""


@dataclass(frozen=True)
class Bundle:
    """A loaded model and what is known of it.

    Attributes
    ----------
    model:
        In evaluation mode, float32.
    config:
        With the bundle's ``model``, ``grid``, ``prepare``, ``harmonize`` and ``train`` sections; defaults elsewhere.
    quantiles:
        ``(S, 2, Q)`` quantile function of each sequence's unified domain at its start and its tissue quantiles, unit intensity.
    hash:
        SHA-256 over settings, facts and weights (not over the model card).
    facts:
        ``config.json`` as it was read.
    """

    model: GlobalHarmonizer
    config: Config
    quantiles: Tensor
    hash: str
    facts: dict[str, Any]

    def sequence_index(self, suffix: str) -> int:
        """Index of a BIDS suffix among the model's sequences; ModelError names the valid ones."""
        sequences = self.config.model.sequences
        if suffix not in sequences:
            raise ModelError(
                f"sequence {suffix!r}",
                f"one of {', '.join(sequences)}",
                "Use a model that was trained on this sequence.",
            )
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
    """Write a bundle, whole or not at all; an earlier bundle of the same path is replaced.

    Parameters
    ----------
    quantiles:
        ``(S, 2, Q)`` quantile function and tissue quantiles per sequence, with which ``model`` was made.
    data_hash:
        Hash of the prepared training data.
    training:
        JSON-able account of the training; the model card shows ``steps`` (int), ``validation`` (name to value) and
        ``counts`` (site to sequence to number of volumes). No dates: the same training should give the same hash.

    Raises
    ------
    ModelError
        If ``path`` holds something that is not a bundle, or the model has weights that are not finite.
    """
    path = Path(path)
    if path.exists() and not (path / FACTS).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise ModelError(f"{path}: holds something else", "a new folder or an earlier bundle", "Choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    try:
        state = _plain_weights(model)
        check_weights(state, f"the model for {path}", _AGAIN)
        check_statistics(model, f"the model for {path}", _AGAIN)
        weights = safetensors.torch.save(state)
        (partial / WEIGHTS).write_bytes(weights)
        facts = _facts(model, config, quantiles, data_hash, training, hashlib.sha256(weights).hexdigest())
        write_json(partial / FACTS, facts)
        (partial / CARD).write_text(model_card(facts), encoding="utf-8")
        partial.chmod(path.parent.stat().st_mode & 0o777)
        put_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Read a bundle, whoever made it: nothing outside its folder is opened, no more is built than the weights' file holds.

    Raises
    ------
    ModelError
        Missing folder or file; anything but a regular file in it; unknown format or facts; settings of another version or out of bounds;
        a schedule that is not that of the settings; damaged weights, weights that do not fit or are not finite.
    """
    path = Path(path)
    facts, config, quantiles = _read_description(path)
    model = _frame(config, quantiles)
    content = _read_weights(path, model, facts)
    state = parse_weights(content, str(path / WEIGHTS), _REBUILD)
    try:
        # A tensor that safetensors gives lies anywhere in the file's bytes: a copy lies where the processor likes it.
        model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    except (RuntimeError, ValueError) as error:
        received = f"{path / WEIGHTS}: {' '.join(str(error).split())[:400]}"
        raise ModelError(received, f"the parameters that the model section of {FACTS} asks for", _REBUILD) from error
    model.denoiser.to(memory_format=torch.channels_last)
    model.scheduler = _scheduler(path, config, facts["schedule"])
    check_statistics(model, str(path / WEIGHTS), _REBUILD)
    return Bundle(model.eval().to(device), config, quantiles, hash_of(facts), facts)


def bundle_hash(path: str | Path) -> str:
    """The hash of a bundle without loading its weights, whose checksum is among the hashed facts."""
    return hash_of(_read_description(Path(path))[0])


def bundle_files(path: str | Path) -> dict[str, bytes]:
    """Name and content of the files that :func:`load_bundle` needs, for another machine; raises as it does for what it reads."""
    path = Path(path)
    facts, config, quantiles = _read_description(path)
    weights = _read_weights(path, _frame(config, quantiles), facts)
    return {FACTS: read_part(path, FACTS, MOST_FACTS, _REBUILD), WEIGHTS: weights}


def _facts(
    model: GlobalHarmonizer,
    config: Config,
    quantiles: Tensor,
    data_hash: str,
    training: Mapping[str, Any],
    weights_sha256: str,
) -> dict[str, Any]:
    settings = to_dict(config)
    scheduler: Any = model.scheduler  # diffusers hides its attributes from type checkers
    schedule = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    sequences = list(config.model.sequences)
    return {
        "format": FORMAT,
        "kind": KIND,
        "code_version": code_version(),
        "data_hash": data_hash,
        "sequences": sequences,
        "training": dict(training),
        "config": {section: settings[section] for section in SECTIONS},
        "schedule": schedule,
        "unified_domain": dict(zip(sequences, quantiles.tolist(), strict=True)),
        "weights_sha256": weights_sha256,
    }


def _plain_weights(model: GlobalHarmonizer) -> dict[str, Tensor]:
    """Parameters and buffers as safetensors takes them: float32 (integers stay), contiguous, on the CPU."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {name: (value.float() if value.is_floating_point() else value).contiguous() for name, value in state.items()}


def put_folder(new: Path, path: Path) -> None:
    """Rename the folder into place; an earlier one steps aside first, as a folder cannot replace a full one."""
    if not path.exists():
        os.replace(new, path)
        return
    earlier = Path(tempfile.mkdtemp(prefix=f".earlier-{path.name}-", dir=path.parent))
    try:
        os.replace(path, earlier)
        os.replace(new, path)
    finally:
        if not path.exists():
            os.replace(earlier, path)
        shutil.rmtree(earlier, ignore_errors=True)


def _read_description(path: Path) -> tuple[dict[str, Any], Config, Tensor]:
    """Facts, settings and quantile functions ``(S, 2, Q)`` of a bundle whose format and kind this code knows."""
    facts = read_facts(path, FACTS, {"format": FORMAT, "kind": KIND}, _KINDS, _REBUILD)
    place = str(path / FACTS)
    try:
        config: Config = from_dict(Config, facts["config"])
        quantiles = torch.tensor(
            [facts["unified_domain"][name] for name in config.model.sequences], dtype=torch.float32
        )
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
        received = f"{place}: {type(error).__name__}: {str(error)[:1000]}"
        remedy = "Use the release of mmh-ray that wrote it (code_version tells which)."
        raise ModelError(
            received, f"settings and a unified domain that mmh-ray {code_version()} knows", remedy
        ) from error
    sequences = list(config.model.sequences)
    check_kinds(facts["config"], dict.fromkeys(SECTIONS, dict), f"{place}: config", _REBUILD)
    check_kinds(facts["unified_domain"], dict.fromkeys(sequences, list), f"{place}: unified_domain", _REBUILD)
    if facts["sequences"] != sequences:
        raise ModelError(
            f"{place}: sequences={str(facts['sequences'])[:100]}", f"those of its settings, {sequences}", _REBUILD
        )
    counts = facts["training"].get("counts", {})
    if not isinstance(counts, dict) or not all(isinstance(own, dict) for own in counts.values()):
        raise ModelError(
            f"{place}: training.counts={str(counts)[:100]}", "site to sequence to number of volumes", _REBUILD
        )
    if quantiles.shape != (len(sequences), 2, len(QUANTILES)):
        received = f"{place}: a unified domain of shape {tuple(quantiles.shape)}"
        raise ModelError(received, f"two functions of {len(QUANTILES)} quantiles a sequence", _REBUILD)
    check_quantiles(quantiles, f"{place}: unified_domain", _REBUILD)
    return facts, config, quantiles


def _frame(config: Config, quantiles: Tensor) -> GlobalHarmonizer:
    """The model without any weights, on the device that takes no memory: what the settings ask for is known before it is built."""
    with torch.device("meta"):
        model = GlobalHarmonizer(config.model, config.train, quantiles.to("meta"))
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    if parameters > MOST_PARAMETERS:
        received = f"settings of a model with {parameters / 1e6:.0f} million parameters"
        raise ModelError(received, f"at most {MOST_PARAMETERS / 1e6:.0f} million", "Use a smaller model.")
    return model


def _read_weights(path: Path, frame: GlobalHarmonizer, facts: Mapping[str, Any]) -> bytes:
    """The weights' file, no larger than weights of the model can be, with the checksum that the facts give."""
    size = sum(4 * tensor.numel() for tensor in frame.state_dict().values())
    content = read_part(path, WEIGHTS, size + MOST_HEADER, _REBUILD)
    if hashlib.sha256(content).hexdigest() != facts["weights_sha256"]:
        raise ModelError(f"{path / WEIGHTS}: damaged (other checksum)", f"the weights that {FACTS} describes", _REBUILD)
    return content


def _scheduler(path: Path, config: Config, recorded: Mapping[str, Any]) -> Any:
    """The schedule of the settings, which must be the recorded one; what is recorded is compared, and nothing is made of it.

    diffusers' own ``from_config`` would take a text for a folder, or for a name to look up on a hub. Other releases of diffusers record
    more than :data:`DECIDING`: plain values that nothing here looks at.
    """
    scheduler: Any = make_scheduler(config.model)
    wanted = {key: scheduler.config[key] for key in DECIDING}
    found = {key: recorded.get(key) for key in DECIDING}
    if found != wanted:
        raise ModelError(f"{path / FACTS}: schedule={str(found)[:400]}", f"that of its settings, {wanted}", _REBUILD)
    others = sorted(key for key, value in recorded.items() if isinstance(value, list | dict))
    if others or len(recorded) > MOST_OF_SCHEDULE:
        received = f"{path / FACTS}: schedule with {', '.join(others)[:200] or f'{len(recorded)} keys'}"
        raise ModelError(received, f"at most {MOST_OF_SCHEDULE} plain values", _REBUILD)
    return scheduler


def model_card(facts: Mapping[str, Any]) -> str:
    """MODEL_CARD.md: what the model is for, what it saw and what it cannot do, from the facts of the bundle."""
    training, config = facts["training"], facts["config"]
    sequences, grid = ", ".join(facts["sequences"]), config["grid"]
    edge, shape = f"{grid['spacing_mm']:g} mm", " x ".join(map(str, grid["shape"]))
    metrics = "".join(f"- {name}: {value:.5g}\n" for name, value in (training.get("validation") or {}).items())
    return f"""# Global harmonizer of brain MRI ({sequences})

## Intended use
Takes the scanner's style out of brain scans of these sequences: {sequences}. Every scan is brought to one unified style
per sequence, so that scans of different sites can be analysed together in research. It is not a medical device and
must not be used to diagnose or to treat.

## Training data
Hash of the prepared data: `{facts["data_hash"]}`. Volumes used for training:

{_counts_table(training.get("counts") or {}, facts["sequences"])}
## Training
- optimiser steps: {training.get("steps", "not recorded")}
- working grid: {edge} isotropic, {shape} voxels, canonical RAS axes
- code: mmh-ray {facts["code_version"]}

## Validation
{metrics or "No validation was recorded." + chr(10)}
## Limits
- Other sequences than {sequences} are refused.
- The network works at {edge}; what is finer comes from the scan itself (detail projection), unless switched off.
- Scanners, ages and diseases that the training data do not show may be harmonized less well; a lesion may change in
  contrast.
- Scans are expected to show the whole brain; a wrong brain mask gives a wrong intensity scale.
- Check a sample of results by eye before an analysis.
"""


def _counts_table(counts: Mapping[str, Mapping[str, int]], sequences: list[str]) -> str:
    if not counts:
        return "Not recorded.\n"
    rows = [["site", *sequences], ["---"] * (len(sequences) + 1)]
    rows += [[str(site), *(str(found.get(name, 0)) for name in sequences)] for site, found in sorted(counts.items())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
