"""Trains the convolutional site probe: a small network on slices and their finest detail.

Shapes: ``N`` images, ``S`` slices of each, ``P`` pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmh_ray.evaluation.probes.result import ProbeTraining

EPOCHS = 150
"""Maximum number of passes over the training slices."""
_BATCH = 32
_RATE = 3e-3

KNOWN = 0.02
"""Mean training loss below which training has converged."""


class SliceClassifier(nn.Module):
    """Logits ``(N, classes)`` of slices ``(N, P, P)``.

    Two channels (slice, high-pass), three convolutions, pooling by mean and standard deviation.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.third = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (2, 8, 16, 32))
        self.head = nn.Linear(80, classes)

    def forward(self, slices: Tensor) -> Tensor:
        image = slices[:, None]
        high_pass = image - F.avg_pool2d(image, 3, stride=1, padding=1)
        inside = image != 0
        x = self.norms[0](torch.cat([image, high_pass * inside], dim=1))
        x = F.relu(self.norms[1](self.first(x)))
        x = F.avg_pool2d(x, 2)
        x = F.relu(self.norms[2](self.second(x)))
        early_mean = x.mean(dim=(2, 3))
        x = F.relu(self.norms[3](self.third(x)))
        pooled = torch.cat([early_mean, x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)
        return self.head(pooled)


def train_classifier(
    slices: np.ndarray, classes: np.ndarray, seed: int
) -> tuple[Callable[[np.ndarray], np.ndarray], ProbeTraining]:
    """Train on ``(N, S, P, P)`` slices and ``(N,)`` class numbers.

    Returns a function that predicts the classes of other such slices, and how training ended. Adam (Kingma & Ba 2015),
    classes weighted inversely to their size, until the mean loss is below :data:`KNOWN` or for :data:`EPOCHS` epochs. A
    plateau of the loss does not end training, because faint marks are learned late. The prediction of an image is the
    mean over its slices. The global random state is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SliceClassifier(int(classes.max()) + 1)
        epochs, loss = _fit(network, slices, classes)
        _settle_norms(network, _tensor(slices).flatten(0, 1))

    def predict(unknown: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = []
            for image_slices in unknown:
                log_shares = F.log_softmax(network(_tensor(image_slices)), dim=1)
                logits.append(log_shares.mean(dim=0))
            return torch.stack(logits).argmax(dim=1).numpy()

    accuracy = float((predict(slices) == classes).mean())
    return predict, ProbeTraining(epochs, loss, accuracy, converged=loss < KNOWN)


def _fit(network: SliceClassifier, slices: np.ndarray, classes: np.ndarray) -> tuple[int, float]:
    """Train the network; return the number of epochs and the last mean loss."""
    x = _tensor(slices).flatten(0, 1)
    y = torch.from_numpy(np.repeat(classes, slices.shape[1]))
    counts = torch.bincount(y)
    class_weights = len(y) / (len(counts) * counts.clamp(min=1).float())
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE, weight_decay=1e-4)
    epochs = 0
    loss = float("inf")
    while epochs < EPOCHS and loss >= KNOWN:
        loss = _epoch(network, optimizer, x, y, class_weights)
        epochs += 1
    return epochs, loss


def _settle_norms(network: SliceClassifier, x: Tensor) -> None:
    """Compute the norms' means and variances from all training slices; the running ones lag behind the weights."""
    for norm in network.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.reset_running_stats()
        norm.momentum = None  # plain mean over batches
    network.train()
    with torch.no_grad():
        for rows in torch.randperm(len(x)).split(_BATCH):
            if len(rows) > 1:
                network(x[rows])
    network.eval()


def _epoch(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, class_weights: Tensor) -> float:
    network.train()
    total = 0.0
    for rows in torch.randperm(len(x)).split(_BATCH):
        if len(rows) < 2:
            continue  # batch normalisation needs at least two slices
        loss = F.cross_entropy(network(x[rows]), y[rows], weight=class_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(x)


def _tensor(slices: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(slices, np.float32))
