"""The aggregator of a style encoder whose backbone brings none: trained once a run."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from mmh_ray.config import Config
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.style.contrast import train_aggregator
from mmh_ray.models.style.embedded import EMBEDDED
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.shards import PreparedStore

log = logging.getLogger(__name__)

VOLUMES, STYLES = 4, 3
"""Volumes per site and sequence, and looks of each, the first of which is its own."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedAggregator:
    """Weights of the aggregator, none where the backbone brings a trained one, and what :func:`train_aggregator` says of them."""

    state: dict[str, Tensor]
    figures: dict[str, float]


def aggregator_for(store: PreparedStore, rows: Sequence[Row], config: Config, spacing_mm: float) -> TrainedAggregator:
    """The aggregator that goes with ``config.style``, learned from ``rows`` of the store in one Ray task.

    Raises
    ------
    ModelError
        If the backbone cannot be had, the volumes show no contrast, or the style vectors collapsed.
    """
    if config.style.backbone == EMBEDDED:
        return TrainedAggregator({}, {})
    log.info("training the aggregator of style.backbone=%s", config.style.backbone)
    remote = ray.remote(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0)(learn_aggregator)
    try:
        return ray.get(remote.remote(store.uri, chosen(rows), config, spacing_mm))
    except ray.exceptions.RayTaskError as error:
        raise getattr(error, "cause", None) or error from error


def chosen(rows: Sequence[Row]) -> list[Row]:
    """At most :data:`VOLUMES` rows of split train per site and sequence."""
    ordered = sorted((row for row in rows if row["split"] == "train"), key=lambda row: (*_look(row), row["image_id"]))
    return [row for _, own in itertools.groupby(ordered, _look) for row in list(own)[:VOLUMES]]


def learn_aggregator(store_uri: str, rows: Sequence[Row], config: Config, spacing_mm: float) -> TrainedAggregator:
    """The work of the task. Volumes of one site, sequence and random style are of one label: other people in the same style attract
    each other, the same person in another style repels."""
    store = PreparedStore(store_uri)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = make_style_encoder(config.style, spacing_mm).to(device)
    features, labels = [], []
    for row, style in itertools.product(rows, range(STYLES)):
        image, mask = (torch.from_numpy(array) for array in store.read(row))
        if style:  # the same draws, so the same style, for everyone
            same = torch.Generator().manual_seed(style)
            image = restyle(image, mask, spacing_mm, config.restyle, same)
        with torch.no_grad():
            features.append(encoder.features(image[None].to(device), mask[None].to(device)))
        labels.append((*_look(row), style))
    looks, sequences = _numbers(labels).to(device), _numbers([sequence for sequence, *_ in labels]).to(device)
    figures = train_aggregator(encoder, torch.cat(features), looks, sequences, config.style)
    return TrainedAggregator({k: v.cpu().contiguous() for k, v in encoder.aggregator.state_dict().items()}, figures)


def _numbers(names: Sequence[Any]) -> Tensor:
    known = sorted(set(names))
    return torch.tensor([known.index(name) for name in names])


def _look(row: Row) -> tuple[str, str]:
    return row["sequence"], row["site"]
