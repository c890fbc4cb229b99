"""The contrastive losses of the style encoder, and the training of its aggregator on given volumes.

Shapes: ``B`` volumes, ``3`` planes, ``K`` slices per plane, ``D`` dimensions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmh_ray.config import StyleConfig
from mmh_ray.errors import ModelError
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.training import descend

LEAST_SPREAD = 0.05
"""An encoder has collapsed if the mean cosine distance of its style vectors is smaller."""

_VOLUMES_PER_STEP = 32


def style_contrast(styles: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al., 2020, eq. 2).

    It is the mean, over all pairs with one label, of ``-log(exp(s_ij / T) / sum_{k != i} exp(s_ik / T))`` with cosines
    ``s``. ``styles`` ``(B, D)``, ``labels`` ``(B,)`` long. If people were scanned by several scanners, a person's other
    styles are among the ``k``, so anatomy in a style vector raises the loss. Zero if no label occurs twice.
    """
    unit = F.normalize(styles, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarities = unit @ unit.T / temperature
    to_others = similarities.masked_fill(itself, -torch.inf)
    log_shares = to_others.log_softmax(1)
    has_same_label = labels[:, None] == labels
    pairs = has_same_label & ~itself
    log_shares_of_pairs = torch.where(pairs, log_shares, 0)
    count = pairs.sum().clamp_min(1)
    return -log_shares_of_pairs.sum() / count


def spread_shortfall(styles: Tensor) -> Tensor:
    """Mean over the dimensions of ``max(0, 1 - std)``, with standard deviations over the batch (Bardes et al., 2022).

    Vectors are scaled to length ``sqrt(D)`` first, so that only directions count.
    """
    length = math.sqrt(styles.shape[1])
    scaled = F.normalize(styles, dim=1) * length
    variance = scaled.var(0, unbiased=False)
    deviation = (variance + 1e-4).sqrt()
    return F.relu(1 - deviation).mean()


def spread(styles: Tensor) -> float:
    """Mean cosine distance between the style vectors ``(B, D)`` of different volumes: 0 if all are equal."""
    unit = F.normalize(styles, dim=1)
    count = len(unit)
    # The square of the sum is the sum of the cosines of all ordered pairs, including each volume with itself.
    cosines = unit.sum(0).square().sum() - count
    return float(1 - cosines / (count * (count - 1)))


def train_aggregator(
    encoder: TriPlanarStyleEncoder,
    features: Tensor,
    labels: Tensor,
    sequences: Tensor,
    config: StyleConfig,
    seed: int = 0,
) -> dict[str, float]:
    """Train attention and fusion, in place, to tell sites apart within each sequence; the backbone does not change.

    Each step uses volumes of one sequence, all sequences in turn: any encoder can tell T1w from T2w, so mixed batches
    would teach nothing.

    Parameters
    ----------
    features:
        ``(B, 3, K, D)`` of :meth:`TriPlanarStyleEncoder.features`.
    labels:
        ``(B,)`` long, the site of each volume, or another label of its style. A sequence with only one label, or
        without two volumes of one label, is left out.
    sequences:
        ``(B,)`` long, the sequence of each volume.

    Returns
    -------
    ``contrast``, the mean over sequences, and ``spread``, the smallest of the sequences; each after training and before
    it (``_before``).

    Raises
    ------
    ModelError
        If all sequences are left out, the loss is not finite, or the style vectors of a sequence collapsed. The
        aggregator is then unchanged.
    """
    parts = _contrasted(labels, sequences)
    aggregator = encoder.aggregator
    generator = torch.Generator().manual_seed(seed)
    start = {name: tensor.clone() for name, tensor in aggregator.state_dict().items()}
    before = _figures(aggregator, features, labels, parts, config)
    optimizer = torch.optim.AdamW(aggregator.parameters(), config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        of_sequence = parts[step % len(parts)]
        drawn = torch.randperm(len(of_sequence), generator=generator)[:_VOLUMES_PER_STEP]
        volumes = of_sequence[drawn.to(of_sequence.device)]
        styles = aggregator(features[volumes])
        contrast = style_contrast(styles, labels[volumes], config.temperature)
        loss = contrast + config.spread_weight * spread_shortfall(styles)
        descend(loss, optimizer)
        schedule.step()
    after = _figures(aggregator, features, labels, parts, config)
    try:
        _check_spread(after)
    except ModelError:
        aggregator.load_state_dict(start)
        raise
    return after | {f"{name}_before": value for name, value in before.items()}


@torch.no_grad()
def _figures(
    aggregator: nn.Module, features: Tensor, labels: Tensor, parts: list[Tensor], config: StyleConfig
) -> dict[str, float]:
    """Mean contrast and smallest spread of the sequences."""
    styles = aggregator(features)
    contrasts = []
    spreads = []
    for part in parts:
        styles_of_part = styles[part]
        contrast = style_contrast(styles_of_part, labels[part], config.temperature)
        contrasts.append(float(contrast))
        spreads.append(spread(styles_of_part))
    return {"contrast": sum(contrasts) / len(parts), "spread": min(spreads)}


def _contrasted(labels: Tensor, sequences: Tensor) -> list[Tensor]:
    """Indices of the volumes of each sequence with two labels or more, one of them with two volumes or more."""
    kept = []
    counts = []
    for sequence in sequences.unique():
        volumes = (sequences == sequence).nonzero()[:, 0]
        volumes_per_site = labels[volumes].unique(return_counts=True)[1].tolist()
        counts.append(volumes_per_site)
        if len(volumes_per_site) > 1 and max(volumes_per_site) > 1:
            kept.append(volumes)
    if not kept:
        received = f"sequences with {', '.join(map(str, counts))} volumes of each site"
        remedy = "Give volumes of two sites or more, several of each."
        raise ModelError(received, "a sequence of two sites, one of them with two volumes", remedy)
    return kept


def _check_spread(figures: dict[str, float]) -> None:
    """ModelError if the encoder has collapsed to nearly equal vectors."""
    if not (math.isfinite(figures["contrast"]) and figures["spread"] >= LEAST_SPREAD):
        received = f"collapsed style vectors (mean cosine distance {figures['spread']:.3g} within a sequence)"
        remedy = "Lower style.learning_rate or raise style.spread_weight; the aggregator is unchanged."
        raise ModelError(received, f"{LEAST_SPREAD} or more", remedy)
