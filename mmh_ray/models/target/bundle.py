"""The target bundle: adapters of one site on one global model, in JSON and safetensors; nothing is unpickled.

::

    alder/
      target.json            site, base model, styles, settings, provenance, checksums
      T1w.safetensors        low-rank updates, one file per sequence
      style.safetensors      aggregator of the style encoder, unless it belongs to the embedded backbone
      MODEL_CARD.md          the same facts in words
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmh_ray.config import Config, HarmonizeConfig, RestyleConfig, StyleConfig, TargetConfig, from_dict, to_dict
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.models.bundle import Bundle
from mmh_ray.models.bundle_files import check_kinds, check_weights, parse_weights, read_part
from mmh_ray.models.bundle_format import OTHER_RELEASE, BundleFormat, write_weights
from mmh_ray.models.style.embedded import EMBEDDED
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, check_same_encoder, load_aggregator, make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle, attach
from mmh_ray.models.target.fine_tuner import TunedAdapter
from mmh_ray.provenance import code_version, hash_of

FACTS = "target.json"
AGGREGATOR = "style.safetensors"
SAMPLING = ("steps", "inversion_depth", "fusion", "planes")
"""Settings of `harmonize` that a target is trained with and intended for."""

MOST_ADAPTER = 256 * 2**20
"""Largest size of an adapter's weights in bytes: ten times that of rank 64 on a model at 1 mm."""

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}")
_SUFFIX = re.compile(r"[A-Za-z0-9]{1,64}")
_COPY_OR_TRAIN = "Copy the adapter again, or train it again with `mmh train-target`."
_TRAIN_AGAIN = "Train it again, with a lower target.learning_rate."
_FORMAT = BundleFormat(
    kind="target",
    version=1,
    noun="target",
    facts_file=FACTS,
    facts={
        "site": str,
        "code_version": str,
        "base": dict,
        "target": dict,
        "harmonize": dict,
        "restyle": dict,
        "training": dict,
        "sequences": dict,
    },
    rebuild=_COPY_OR_TRAIN,
)
_FACTS_OF_SEQUENCE = {"weights_sha256": str, "style": dict, "validation": dict, "untuned": dict, "steps": int}
_FACTS_OF_STYLE = {"unified": list, "site": list, "quantiles": list, "noise": float, "blur": float}


@dataclass(frozen=True)
class Target:
    """A site, or a reference scan, whose style images are mapped to.

    Attributes
    ----------
    site:
        Name of the site, or another name for the target.
    styles:
        Sequence to the site's style.
    hash:
        SHA-256 over everything that decides voxels, and the site's name.
    uri:
        Where it was loaded from.
    facts:
        Facts that are copied into sidecars.
    weights:
        Sequence to the adapter's weights. A sequence has no entry if no adapter was better in validation; then only the
        curve of its style is used.
    rank:
        Rank of the adapters.
    aggregator:
        Weights of the style encoder's aggregator in training; empty if it belongs to the embedded backbone.
    """

    site: str
    styles: Mapping[str, SiteStyle]
    hash: str
    uri: str
    facts: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    rank: int
    aggregator: Mapping[str, Tensor] = field(default_factory=dict)

    def attach(self, bundle: Bundle) -> None:
        """Add the adapters to the bundle's model, switched off, named as by :meth:`adapter`.

        Raises
        ------
        ModelError
            If they were trained on another global model.
        """
        base = self.facts.get("base", {}).get("hash", bundle.hash)
        if base != bundle.hash:
            received = f"target {self.site} ({self.uri}), trained on global model {base[:12]}"
            remedy = f"Harmonize with {self.facts['base']['uri']}, or train the target on this one."
            raise ModelError(received, f"adapters of the model in use, {bundle.hash[:12]}", remedy)
        for sequence, state in self.weights.items():
            attach(bundle.model, self.adapter(sequence), self.rank, dict(state))

    def sampling(self, settings: HarmonizeConfig) -> HarmonizeConfig:
        """The settings, with the :data:`SAMPLING` that the target was trained with, if that is recorded."""
        recorded = self.facts.get("harmonize", {})
        combined = to_dict(settings) | recorded
        return from_dict(HarmonizeConfig, combined)

    def encoder(self, config: StyleConfig, spacing_mm: float) -> TriPlanarStyleEncoder:
        """The style encoder that the target was trained with.

        Raises
        ------
        ModelError
            If the configured encoder is a different one, or its backbone cannot be loaded.
        """
        recorded = self.facts["training"].get("style_encoder", {})
        encoder = make_style_encoder(config, spacing_mm)
        if self.aggregator and recorded.get("backbone_sha256") == encoder.describe()["backbone_sha256"]:
            load_aggregator(encoder, self.aggregator)
        check_same_encoder(recorded, encoder.describe())
        return encoder

    def adapter(self, sequence: str) -> str:
        """Name of the adapter of a sequence in the model."""
        return f"{self.hash[:12]}_{sequence}"


def save_target(
    path: str | Path,
    site: str,
    base: Mapping[str, str],
    styles: Mapping[str, SiteStyle],
    tuned: Mapping[str, TunedAdapter],
    config: Config,
    training: Mapping[str, Any],
    aggregator: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a target bundle, whole or not at all; an earlier one at the same path is replaced.

    Parameters
    ----------
    base:
        ``hash`` and ``uri`` of the global model.
    training:
        JSON-able facts: per sequence ``images``, ``validation_images`` and ``sources``; and ``style_encoder``, the
        description of the encoder.
    aggregator:
        Weights of that encoder's aggregator, unless it belongs to the embedded backbone.
    """
    path = Path(path)
    with _FORMAT.new_folder(path) as folder:
        sequences = {}
        for sequence, adapter in tuned.items():
            check_weights(adapter.state, f"the adapter of {sequence} for {site}", _TRAIN_AGAIN)
            sequences[sequence] = {
                "weights_sha256": write_weights(folder / _weights_file(sequence), adapter.state),
                "style": _style_facts(styles[sequence], f"the style of {sequence} for {site}"),
                "validation": adapter.validation,
                "untuned": adapter.untuned,
                "steps": adapter.steps,
            }
        if aggregator:
            write_weights(folder / AGGREGATOR, aggregator)
        sampling = to_dict(config.harmonize)
        facts: dict[str, Any] = {
            "site": site,
            "code_version": code_version(),
            "base": dict(base),
            "target": to_dict(config.target) | {"site": [site]},
            "harmonize": {key: sampling[key] for key in SAMPLING},
            "restyle": to_dict(config.restyle),
            "training": dict(training),
            "sequences": sequences,
        }
        _FORMAT.write_description(folder, facts, _model_card(facts))


def _weights_file(sequence: str) -> str:
    return f"{sequence}.safetensors"


def _style_facts(style: SiteStyle, place: str) -> dict[str, Any]:
    """A style as JSON; ModelError if it could not be read again."""
    facts = {key: np.asarray(value).tolist() for key, value in vars(style).items()}
    _style(facts, place)
    return facts


def load_target(path: str | Path, uri: str | None = None, style: StyleConfig | None = None) -> Target:
    """Read a target bundle; ``uri`` is the URI to cite it by.

    Parameters
    ----------
    style:
        The caller's settings. The backbone must be the default, or have the name that is recorded in the bundle. Only
        names are compared here; :meth:`Target.encoder` compares weights.

    Raises
    ------
    ModelError
        If the folder or a file is missing or is not a regular file; if format, facts or settings are unknown or out of
        bounds; if curves are not plausible for images; if weights are damaged or not finite; if the style backbone is a
        different one.
    """
    path = Path(path)
    facts, settings = _read_description(path)
    if style is not None:
        _check_backbone(path, facts, style)
    weights: dict[str, dict[str, Tensor]] = {}
    styles: dict[str, SiteStyle] = {}
    for sequence, sequence_facts in facts["sequences"].items():
        name = _weights_file(sequence)
        content = _FORMAT.read_weights(path, name, MOST_ADAPTER, sequence_facts["weights_sha256"])
        state = parse_weights(content, path / name, _COPY_OR_TRAIN)
        if sequence_facts["steps"] > 0:  # at 0 steps the adapter changes nothing, and would cost two passes
            weights[sequence] = state
        styles[sequence] = _style(sequence_facts["style"], f"{path / FACTS}: {sequence}")
    return Target(
        site=_composed(facts["site"]),
        styles=styles,
        hash=_hash(facts),
        uri=uri or path.absolute().as_uri(),
        facts=facts,
        weights=weights,
        rank=settings.rank,
        aggregator=_read_aggregator(path),
    )


def _read_aggregator(path: Path) -> dict[str, Tensor]:
    """Weights of the style encoder's aggregator; empty if the bundle has none."""
    if not os.path.lexists(path / AGGREGATOR):
        return {}
    content = read_part(path, AGGREGATOR, MOST_ADAPTER, _COPY_OR_TRAIN)
    return parse_weights(content, path / AGGREGATOR, _COPY_OR_TRAIN)


def _style(facts: Mapping[str, Any], place: str) -> SiteStyle:
    """A site's style from the facts of a bundle; ModelError if they are not valid."""
    try:
        return SiteStyle.read(facts)
    except (KeyError, TypeError, ValueError) as error:
        received = f"{place}: {type(error).__name__}: {str(error)[:300]}"
        raise ModelError(received, "the style of a site's scans", _COPY_OR_TRAIN) from error


def _check_backbone(path: Path, facts: Mapping[str, Any], style: StyleConfig) -> None:
    encoder = facts["training"].get("style_encoder", {})
    recorded = encoder.get("backbone")
    if recorded is None or style.backbone in (EMBEDDED, recorded):
        return
    remedy = "Leave style.backbone out (a trained target needs none), or train the target with it."
    raise ModelError(f"style.backbone={style.backbone!r} for {path}", f"the recorded {recorded!r}", remedy)


def target_hash(path: str | Path) -> str:
    """Hash of a target bundle without loading its weights."""
    return _hash(_read_description(Path(path))[0])


def target_site(path: str | Path) -> str:
    """Site of a target bundle, in Unicode's composed form (NFC)."""
    facts, _ = _read_description(Path(path))
    return _composed(facts["site"])


def _composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), so that two encodings of one name are equal."""
    return unicodedata.normalize("NFC", name)


def _hash(facts: Mapping[str, Any]) -> str:
    """Hash over everything that decides voxels, and the site's name; not over the circumstances of the training."""
    deciding: dict[str, list[Any]] = {}
    for sequence, sequence_facts in facts["sequences"].items():
        is_used = sequence_facts["steps"] > 0
        weights = sequence_facts["weights_sha256"] if is_used else None
        deciding[sequence] = [sequence_facts["style"], weights]
    base_hash = facts["base"]["hash"]
    rank = facts["target"]["rank"]
    return hash_of([facts["site"], base_hash, rank, deciding])


def _read_description(path: Path) -> tuple[dict[str, Any], TargetConfig]:
    """Read and check the facts of a target bundle; returns them and the settings of its training."""
    facts = _FORMAT.read_facts(path)
    place = str(path / FACTS)
    _check_facts(facts, place)
    try:
        from_dict(RestyleConfig, facts["restyle"])
        from_dict(HarmonizeConfig, facts["harmonize"])
        return facts, from_dict(TargetConfig, facts["target"])
    except ConfigError as error:
        received = f"{place}: {error.received}"
        expected = f"settings that mmh-ray {code_version()} knows: {error.expected}"
        raise ModelError(received, expected, OTHER_RELEASE) from error


def _check_facts(facts: Mapping[str, Any], place: str) -> None:
    """ModelError if a fact below the first level is missing or has the wrong type."""
    base = facts["base"]
    site = facts["site"]
    check_kinds(base, {"hash": str, "uri": str}, f"{place}: base", _COPY_OR_TRAIN)
    check_kinds(facts["harmonize"], dict.fromkeys(SAMPLING, object), f"{place}: harmonize", _COPY_OR_TRAIN)
    if not base["hash"] or not _NAME.fullmatch(site):
        received = f"{place}: site={site[:200]!r} on base {base['hash'][:64]!r}"
        raise ModelError(received, "a name of at most 200 characters in one line, and a hash", _COPY_OR_TRAIN)
    if "rank" not in facts["target"]:
        raise ModelError(f"{place}: target without rank", "the rank of the adapters", _COPY_OR_TRAIN)
    encoder = facts["training"].get("style_encoder", {})
    if not isinstance(encoder, dict):
        received = f"{place}: style_encoder={str(encoder)[:100]}"
        raise ModelError(received, "an object", _COPY_OR_TRAIN)
    for sequence, sequence_facts in facts["sequences"].items():
        if not _SUFFIX.fullmatch(sequence):
            received = f"{place}: sequence {sequence[:100]!r}"
            raise ModelError(received, "a BIDS suffix such as T1w", _COPY_OR_TRAIN)
        place_of_sequence = f"{place}: {sequence}"
        check_kinds(sequence_facts, _FACTS_OF_SEQUENCE, place_of_sequence, _COPY_OR_TRAIN)
        check_kinds(sequence_facts["style"], _FACTS_OF_STYLE, f"{place_of_sequence} style", _COPY_OR_TRAIN)


def _model_card(facts: Mapping[str, Any]) -> str:
    """Text of MODEL_CARD.md."""
    rows = []
    for sequence, sequence_facts in facts["sequences"].items():
        images = len(facts["training"][sequence]["images"])
        loss_before = sequence_facts["untuned"]["loss"]
        loss_after = sequence_facts["validation"]["loss"]
        steps = sequence_facts["steps"]
        rows.append(f"| {sequence} | {images} | {steps} | {loss_before:.4f} | {loss_after:.4f} |\n")
    table = "".join(rows)
    return f"""# Target {facts["site"]}

## Intended use
Maps brain scans, unified by the global model `{facts["base"]["uri"]}` (hash `{facts["base"]["hash"]}`), to the style of
site {facts["site"]}, for research. It is not a medical device. Any other global model is refused.

## Training
Low-rank updates of rank {facts["target"]["rank"]} and an intensity curve, from the site's own images and images of
other sites; no labels, no person scanned twice. Code: mmh-ray {facts["code_version"]}.

| sequence | images of the site | steps | validation loss, curve alone | with the adapter |
|---|---|---|---|---|
{table}
## Limits
The limits of the global model. A style that was learned from few images may follow their peculiarities.
"""
