"""Trains the aggregator of a style encoder whose backbone has none, once per run."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from mmh_ray.config import Config
from mmh_ray.distributed.cluster import gpus_of_a_task
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.style.contrast import train_aggregator
from mmh_ray.models.style.embedded import EMBEDDED
from mmh_ray.models.style.encoder import make_style_encoder
from mmh_ray.shards import PreparedStore

log = logging.getLogger(__name__)

VOLUMES = 4
"""Volumes per site and sequence."""
STYLES = 3
"""Styles of each volume, the first of which is the original."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedAggregator:
    """Weights of the aggregator (none if the backbone has a trained one), and figures of :func:`train_aggregator`."""

    state: dict[str, Tensor]
    figures: dict[str, float]


def aggregator_for(store: PreparedStore, rows: Sequence[Row], config: Config, spacing_mm: float) -> TrainedAggregator:
    """The aggregator for ``config.style``, trained on ``rows`` of the store in one Ray task.

    Raises
    ------
    ModelError
        If the backbone cannot be loaded, the volumes show no contrast, or the style vectors collapsed.
    """
    if config.style.backbone == EMBEDDED:
        return TrainedAggregator({}, {})
    log.info("training the aggregator of style.backbone=%s", config.style.backbone)
    remote = ray.remote(num_cpus=1, num_gpus=gpus_of_a_task())(learn_aggregator)
    try:
        return ray.get(remote.remote(store.uri, chosen(rows), config, spacing_mm))
    except ray.exceptions.RayTaskError as error:
        raise getattr(error, "cause", None) or error from error


def chosen(rows: Sequence[Row]) -> list[Row]:
    """At most :data:`VOLUMES` rows of split train per site and sequence."""
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["image_id"]):
        if row["split"] == "train":
            groups[row["sequence"], row["site"]].append(row)
    chosen_rows: list[Row] = []
    for key in sorted(groups):
        chosen_rows += groups[key][:VOLUMES]
    return chosen_rows


def learn_aggregator(store_uri: str, rows: Sequence[Row], config: Config, spacing_mm: float) -> TrainedAggregator:
    """Train the aggregator by contrastive learning; runs in the task.

    Volumes of one site, sequence and random style have the same label: different people in the same style attract each
    other, and the same person in different styles repels.
    """
    store = PreparedStore(store_uri)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = make_style_encoder(config.style, spacing_mm).to(device)
    features = []
    labels = []
    for row, style in itertools.product(rows, range(STYLES)):
        image_array, mask_array = store.read(row)
        image = torch.from_numpy(image_array)
        mask = torch.from_numpy(mask_array)
        if style:  # the same random numbers, and so the same style, for all volumes
            generator = torch.Generator().manual_seed(style)
            image = restyle(image, mask, spacing_mm, config.restyle, generator)
        with torch.no_grad():
            features.append(encoder.features(image[None].to(device), mask[None].to(device)))
        labels.append((row["sequence"], row["site"], style))
    label_numbers = _numbers(labels).to(device)
    sequence_numbers = _numbers([sequence for sequence, _site, _style in labels]).to(device)
    figures = train_aggregator(encoder, torch.cat(features), label_numbers, sequence_numbers, config.style)
    state = {name: weight.cpu().contiguous() for name, weight in encoder.aggregator.state_dict().items()}
    return TrainedAggregator(state, figures)


def _numbers(names: Sequence[Any]) -> Tensor:
    """The index of each name among the sorted unique names."""
    unique_names = sorted(set(names))
    return torch.tensor([unique_names.index(name) for name in names])
