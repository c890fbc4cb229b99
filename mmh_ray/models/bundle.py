"""The model bundle: a folder with all it takes to harmonize, in JSON and safetensors; nothing pickled is ever loaded.

::

    bundle/
      config.json            settings, sequences, schedule, unified domain, provenance, checksum of the weights
      denoiser.safetensors   every parameter and buffer of the GlobalHarmonizer
      MODEL_CARD.md          the same facts in words
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mmh_ray.config import Config, from_dict, to_dict
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.models.global_harmonizer import GlobalHarmonizer
from mmh_ray.provenance import code_version, hash_of, write_json

FORMAT = 5
"""Version of the bundle's layout that this code writes and reads."""
KIND = "global"
"""Kind of model that this code writes and reads."""
FACTS, WEIGHTS, CARD = "config.json", "denoiser.safetensors", "MODEL_CARD.md"
SECTIONS = ("model", "grid", "prepare", "harmonize", "train")
"""Sections of the configuration that travel with the model."""

_REBUILD = "Copy the bundle again or train anew."


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
        If ``path`` holds something that is not a bundle.
    """
    path = Path(path)
    if path.exists() and not (path / FACTS).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise ModelError(f"{path}: holds something else", "a new folder or an earlier bundle", "Choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    try:
        weights = safetensors.torch.save(_plain_weights(model))
        (partial / WEIGHTS).write_bytes(weights)
        facts = _facts(model, config, quantiles, data_hash, training, hashlib.sha256(weights).hexdigest())
        write_json(partial / FACTS, facts)
        (partial / CARD).write_text(model_card(facts), encoding="utf-8")
        partial.chmod(path.parent.stat().st_mode & 0o777)
        put_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Read a bundle.

    Raises
    ------
    ModelError
        Missing folder or file, unknown format, settings of another version, damaged weights, weights that do not fit.
    """
    path = Path(path)
    facts = _read_facts(path)
    config, quantiles = _read_settings(path, facts)
    weights = _read(path / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != facts["weights_sha256"]:
        raise ModelError(f"{path / WEIGHTS}: damaged (other checksum)", f"the weights that {FACTS} describes", _REBUILD)
    try:
        state = safetensors.torch.load(weights)
    except SafetensorError as error:
        raise ModelError(f"{path / WEIGHTS}: unreadable ({error})", "a safetensors file", _REBUILD) from error
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # initial weights are thrown away: leave the caller's random numbers alone
            model = GlobalHarmonizer(config.model, config.train, quantiles)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        received = f"{path / WEIGHTS}: {' '.join(str(error).split())[:400]}"
        raise ModelError(received, f"the parameters that the model section of {FACTS} asks for", _REBUILD) from error
    model.scheduler = type(model.scheduler).from_config(facts["schedule"])
    return Bundle(model.float().eval().to(device), config, quantiles, hash_of(facts), facts)


def bundle_hash(path: str | Path) -> str:
    """The hash of a bundle without loading its weights, whose checksum is among the hashed facts."""
    return hash_of(_read_facts(Path(path)))


def bundle_config(path: str | Path) -> Config:
    """The settings of a bundle without loading its weights; raises as :func:`load_bundle` where they cannot be read."""
    return _read_settings(Path(path), _read_facts(Path(path)))[0]


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


def _read(path: Path) -> bytes:
    """Bytes of a part of a bundle; ModelError when there is no such folder or file."""
    if not path.parent.is_dir():
        remedy = "Check the path; `mmh train-global` makes bundles."
        raise ModelError(
            f"{path.parent}: no such folder", f"a model bundle (a folder with {FACTS} and {WEIGHTS})", remedy
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", f"a model bundle with {FACTS} and {WEIGHTS}", _REBUILD) from error


def _read_facts(path: Path) -> dict[str, Any]:
    """``config.json`` of a bundle whose format and kind this code knows."""
    try:
        facts = json.loads(_read(path / FACTS))
    except ValueError as error:
        raise ModelError(f"{path / FACTS}: not JSON ({error})", "a JSON object", _REBUILD) from error
    known = {"format": FORMAT, "kind": KIND}
    found = {key: facts.get(key) for key in known} if isinstance(facts, dict) else facts
    if found != known:
        remedy = f"Use the release of mmh-ray that wrote it, or a bundle made by {code_version()}."
        raise ModelError(f"{path / FACTS}: {str(found)[:200]}", f"a model bundle with {known}", remedy)
    missing = sorted({"config", "schedule", "sequences", "unified_domain", "weights_sha256"} - set(facts))
    if missing:
        raise ModelError(f"{path / FACTS}: without {', '.join(missing)}", "all facts of a bundle", _REBUILD)
    return facts


def _read_settings(path: Path, facts: dict[str, Any]) -> tuple[Config, Tensor]:
    """Config and quantile functions ``(S, 2, Q)`` of the facts."""
    try:
        config: Config = from_dict(Config, facts["config"])
        quantiles = torch.tensor(
            [facts["unified_domain"][name] for name in config.model.sequences], dtype=torch.float32
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        received = f"{path / FACTS}: {type(error).__name__}: {error}"
        remedy = "Use the release of mmh-ray that wrote it (code_version tells which)."
        raise ModelError(
            received, f"settings and a unified domain that mmh-ray {code_version()} knows", remedy
        ) from error
    return config, quantiles


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
