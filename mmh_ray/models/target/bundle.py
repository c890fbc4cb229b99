"""The target bundle: adapters of one site on one global model, in JSON and safetensors; nothing pickled is ever loaded.

::

    alder/
      target.json            site, base model, styles, settings, provenance, checksums
      T1w.safetensors        low-rank updates, one file a sequence
      style.safetensors      aggregator of the style encoder, where the backbone did not bring it
      MODEL_CARD.md          the same facts in words
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from mmh_ray.config import (
    Config,
    HarmonizeConfig,
    RestyleConfig,
    StyleConfig,
    TargetConfig,
    from_dict,
    to_dict,
)
from mmh_ray.errors import ConfigError, ModelError
from mmh_ray.models.bundle import Bundle, put_folder
from mmh_ray.models.bundle_files import check_kinds, check_weights, parse_weights, read_facts, read_part
from mmh_ray.models.style.backbones import EMBEDDED
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, check_same_encoder, load_aggregator, make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle, attach
from mmh_ray.models.target.fine_tuner import TunedAdapter
from mmh_ray.provenance import code_version, hash_of, write_json

FORMAT = 1
KIND = "target"
FACTS, CARD, AGGREGATOR = "target.json", "MODEL_CARD.md", "style.safetensors"
SAMPLING = ("steps", "inversion_depth", "fusion", "planes")
"""Settings of `harmonize` under which a target is trained, and which it is made for."""

MOST_ADAPTER = 256 * 2**20
"""Most bytes of an adapter's weights: ten times those of rank 64 on a model at 1 mm."""

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}")
_SUFFIX = re.compile(r"[A-Za-z0-9]{1,64}")
_KINDS = {
    "site": str,
    "code_version": str,
    "base": dict,
    "target": dict,
    "harmonize": dict,
    "restyle": dict,
    "training": dict,
    "sequences": dict,
}
"""Facts of a target bundle, besides its format and kind."""
_KINDS_OF_SEQUENCE = {"weights_sha256": str, "style": dict, "validation": dict, "untuned": dict, "steps": int}
_REBUILD = "Copy the adapter again or train it anew with `mmh train-target`."
_AGAIN = "Train it again, with a lower target.learning_rate."


@dataclass(frozen=True)
class Target:
    """Where a scan is to go from the unified domain.

    Attributes
    ----------
    site:
        Name of the site, or what else is to be called the target.
    styles:
        Sequence to the site's look.
    hash:
        SHA-256 over all that decides voxels, and the site's name.
    uri:
        Where it came from.
    facts:
        What stands in sidecars.
    weights:
        Sequence to the adapter's weights; without an entry (no adapter was better in validation), the style's curve alone is used.
    rank:
        Of the adapters.
    aggregator:
        Weights of the style encoder's aggregator that described style in training; empty where the backbone brought it.
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
        """Put the adapters on the bundle's model, switched off, as SITE-HASH/SEQUENCE.

        Raises
        ------
        ModelError
            If they were trained on another global model.
        """
        base = self.facts.get("base", {}).get("hash", bundle.hash)
        if base != bundle.hash:
            raise ModelError(
                f"target {self.site} ({self.uri}), trained on global model {base[:12]}",
                f"adapters of the model in use, {bundle.hash[:12]}",
                f"Harmonize with {self.facts['base'].get('uri', 'that model')}, or train the target on this one.",
            )
        for sequence, state in self.weights.items():
            attach(bundle.model, self.adapter(sequence), self.rank, dict(state))

    def sampling(self, settings: HarmonizeConfig) -> HarmonizeConfig:
        """The settings with :data:`SAMPLING` as the target was trained; as they are where that is not recorded."""
        return from_dict(HarmonizeConfig, to_dict(settings) | self.facts.get("harmonize", {}))

    def encoder(self, config: StyleConfig, spacing_mm: float) -> TriPlanarStyleEncoder:
        """The style encoder that the target was trained with, for whoever goes on to describe styles with it.

        Raises
        ------
        ModelError
            If the configured one is another, or its backbone cannot be had.
        """
        recorded = self.facts["training"].get("style_encoder", {})
        encoder = make_style_encoder(config, spacing_mm)
        if self.aggregator and recorded.get("backbone_sha256") == encoder.describe()["backbone_sha256"]:
            load_aggregator(encoder, self.aggregator)
        check_same_encoder(recorded, encoder.describe())
        return encoder

    def adapter(self, sequence: str) -> str:
        """Name of the adapter of a sequence on the model."""
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
    """Write a target bundle, whole or not at all; an earlier one of the same path is replaced.

    Parameters
    ----------
    base:
        ``hash`` and ``uri`` of the global model.
    training:
        JSON-able account per sequence: ``images``, ``validation_images``, ``sources``; and ``style_encoder``, which described style.
    aggregator:
        Weights of that encoder's aggregator, where its backbone did not bring it.
    """
    path = Path(path)
    if path.exists() and not (path / FACTS).is_file():
        raise ModelError(f"{path}: holds something else", "a new folder or an earlier target", "Choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    try:
        sequences = {}
        for sequence, adapter in tuned.items():
            check_weights(adapter.state, f"the adapter of {sequence} for {site}", _AGAIN)
            weights, style = safetensors.torch.save(adapter.state), styles[sequence]
            (partial / f"{sequence}.safetensors").write_bytes(weights)
            sequences[sequence] = {
                "weights_sha256": hashlib.sha256(weights).hexdigest(),
                "style": _style_facts(style, f"the style of {sequence} for {site}"),
                "validation": adapter.validation,
                "untuned": adapter.untuned,
                "steps": adapter.steps,
            }
        if aggregator:
            (partial / AGGREGATOR).write_bytes(safetensors.torch.save(dict(aggregator)))
        facts = {
            "format": FORMAT,
            "kind": KIND,
            "site": site,
            "code_version": code_version(),
            "base": dict(base),
            "target": to_dict(config.target) | {"site": [site]},
            "harmonize": {key: to_dict(config.harmonize)[key] for key in SAMPLING},
            "restyle": to_dict(config.restyle),
            "training": dict(training),
            "sequences": sequences,
        }
        write_json(partial / FACTS, facts)
        (partial / CARD).write_text(_card(facts), encoding="utf-8")
        partial.chmod(path.parent.stat().st_mode & 0o777)
        put_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _style_facts(style: SiteStyle, place: str) -> dict[str, Any]:
    """A style as a bundle has it, if it can be read again."""
    facts = {key: np.asarray(value).tolist() for key, value in vars(style).items()}
    _style(facts, place)
    return facts


def load_target(path: str | Path, uri: str | None = None, style: StyleConfig | None = None) -> Target:
    """Read a target bundle; ``uri`` is how to cite it.

    Parameters
    ----------
    style:
        Settings of whoever loads it. Its backbone must be the default, which asks for none, or of the name that the bundle records: no
        weights are loaded to compare them. :meth:`Target.encoder` does that.

    Raises
    ------
    ModelError
        Missing folder or file; anything but a regular file in it; unknown format or facts; settings out of bounds; curves that cannot be
        those of images; damaged weights, or such as are not finite; another style backbone.
    """
    path = Path(path)
    facts, settings = _read_description(path)
    if style is not None:
        _check_backbone(path, facts, style)
    weights: dict[str, dict[str, Tensor]] = {}
    styles: dict[str, SiteStyle] = {}
    for sequence, found in facts["sequences"].items():
        name = f"{sequence}.safetensors"
        content = read_part(path, name, MOST_ADAPTER, _REBUILD)
        if hashlib.sha256(content).hexdigest() != found["weights_sha256"]:
            received = f"{path}: damaged weights of {sequence} (other checksum)"
            raise ModelError(received, f"what {FACTS} describes", _REBUILD)
        state = parse_weights(content, str(path / name), _REBUILD)
        if found["steps"] > 0:  # one that was never the better one changes nothing, and would cost two passes
            weights[sequence] = state
        styles[sequence] = _style(found["style"], f"{path / FACTS}: {sequence}")
    aggregator: dict[str, Tensor] = {}
    if os.path.lexists(path / AGGREGATOR):
        learned = read_part(path, AGGREGATOR, MOST_ADAPTER, _REBUILD)
        aggregator = parse_weights(learned, str(path / AGGREGATOR), _REBUILD)
    site = unicodedata.normalize("NFC", facts["site"])
    cited = uri or path.absolute().as_uri()
    return Target(site, styles, _hash(facts), cited, facts, weights, settings.rank, aggregator)


def _style(facts: Mapping[str, Any], place: str) -> SiteStyle:
    try:
        return SiteStyle.read(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{place}: {type(error).__name__}: {str(error)[:300]}", "the look of a site's scans", _REBUILD
        ) from error


def _check_backbone(path: Path, facts: Mapping[str, Any], style: StyleConfig) -> None:
    recorded = facts["training"].get("style_encoder", {}).get("backbone")
    if recorded is not None and style.backbone not in (EMBEDDED, recorded):
        remedy = "Leave style.backbone out (a trained target needs none), or train the target with it."
        raise ModelError(f"style.backbone={style.backbone!r} for {path}", f"the recorded {recorded!r}", remedy)


def target_hash(path: str | Path) -> str:
    """The hash of a target bundle without loading its weights."""
    return _hash(_read_description(Path(path))[0])


def target_site(path: str | Path) -> str:
    """The site of a target bundle, in the form in which Unicode composes letters."""
    return unicodedata.normalize("NFC", _read_description(Path(path))[0]["site"])


def _hash(facts: Mapping[str, Any]) -> str:
    """Over all that decides voxels, and the site's name; not over where, when and from what it was trained."""
    used = {
        sequence: [found["style"], found["weights_sha256"] if found["steps"] > 0 else None]
        for sequence, found in facts["sequences"].items()
    }
    return hash_of([facts["site"], facts["base"]["hash"], facts["target"]["rank"], used])


def _read_description(path: Path) -> tuple[dict[str, Any], TargetConfig]:
    """Facts of a target bundle, each of its kind, and the settings that it was trained with."""
    facts = read_facts(path, FACTS, {"format": FORMAT, "kind": KIND}, _KINDS, _REBUILD)
    place = str(path / FACTS)
    check_kinds(facts["base"], {"hash": str, "uri": str}, f"{place}: base", _REBUILD)
    check_kinds(facts["harmonize"], dict.fromkeys(SAMPLING, object), f"{place}: harmonize", _REBUILD)
    if not facts["base"]["hash"] or not _NAME.fullmatch(facts["site"]):
        received = f"{place}: site={facts['site'][:200]!r} on base {facts['base']['hash'][:64]!r}"
        raise ModelError(received, "a name of at most 200 characters in one line, and a hash", _REBUILD)
    if "rank" not in facts["target"]:
        raise ModelError(f"{place}: target without rank", "the rank of the adapters", _REBUILD)
    encoder = facts["training"].get("style_encoder", {})
    if not isinstance(encoder, dict):
        raise ModelError(f"{place}: style_encoder={str(encoder)[:100]}", "an object", _REBUILD)
    for sequence, found in facts["sequences"].items():
        if not _SUFFIX.fullmatch(sequence):
            raise ModelError(f"{place}: sequence {sequence[:100]!r}", "a BIDS suffix such as T1w", _REBUILD)
        check_kinds(found, _KINDS_OF_SEQUENCE, f"{place}: {sequence}", _REBUILD)
        style_kinds = {"unified": list, "site": list, "quantiles": list, "noise": float, "blur": float}
        check_kinds(found["style"], style_kinds, f"{place}: {sequence} style", _REBUILD)
    try:
        from_dict(RestyleConfig, facts["restyle"], "restyle.")
        from_dict(HarmonizeConfig, facts["harmonize"], "harmonize.")
        return facts, from_dict(TargetConfig, facts["target"], "target.")
    except ConfigError as error:
        remedy = "Use the release of mmh-ray that wrote it (code_version tells which)."
        received, expected = f"{place}: {error.received}", f"settings that mmh-ray {code_version()} knows"
        raise ModelError(received, f"{expected}: {error.expected}", remedy) from error


def _card(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| {sequence} | {len(facts['training'][sequence]['images'])} | {found['steps']} "
        f"| {found['untuned']['loss']:.4f} | {found['validation']['loss']:.4f} |\n"
        for sequence, found in facts["sequences"].items()
    )
    return f"""# Target {facts["site"]}

## Intended use
Moves brain scans, unified by the global model `{facts["base"]["uri"]}` (hash `{facts["base"]["hash"]}`), to the look of site
{facts["site"]}, for research. It is not a medical device. Any other global model is refused.

## Training
Low-rank updates of rank {facts["target"]["rank"]} and an intensity curve, from the site's own images and images of other sites; no
labels, no person scanned twice. Code: mmh-ray {facts["code_version"]}.

| sequence | images of the site | steps | validation loss, curve alone | with the adapter |
|---|---|---|---|---|
{rows}
## Limits
Those of the global model. A look learned from few images may follow what these few happen to show.
"""
