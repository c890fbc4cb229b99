"""The last step into the unified domain: an increasing curve, told from the image itself.

A network trained with squared error draws what it is unsure of towards the middle: fluid comes out too near to tissue, grey matter
too near to one of its neighbours. How far hangs on what the scan shows, on its contrast, blur and noise, and so on its site. On simulated
people kept aside, whose truth is known, a ridge regression (Hoerl & Kennard, 1970) learns which curve undoes it, from the tissue
quantiles of what the network made. A person's own share of tissues is among what it saw vary there: unlike matching a scan's
histogram, it does not take an atrophied brain for a badly unified one.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from mmh_ray.imaging.intensity import MonotoneMap, tissue_quantiles

KNOTS = 9
_PLACES = slice(4, -4, 8)  # of 257 quantiles
_LEVELS = len(range(257)[_PLACES])
_ENDS = 3  # of 257 quantiles are left out of the knots at either end
_STEADY = 1e-3  # share of voxels that a knot must have for its own, else it is drawn to no change
_PENALTIES = np.logspace(-1, 4, 12)


class Calibration(nn.Module):
    """Curves of all sequences; one that was never fitted changes nothing.

    Parameters
    ----------
    sequences:
        Their number ``S``.
    """

    knots: Tensor
    """``(S, 2, K)``: intensities of the network's fused image, and those of the unified domain that they go to on average."""
    slopes: Tensor
    """``(S, 2 K, L)``: how the knots change with the levels, that is, tissue quantiles of the fused image."""
    seen: Tensor
    """``(S, 3, L)``: least, mean and greatest level in fitting; what lies beyond counts as the end."""

    def __init__(self, sequences: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(0, 1, KNOTS).expand(sequences, 2, -1).clone())
        self.register_buffer("slopes", torch.zeros(sequences, 2 * KNOTS, _LEVELS))
        self.register_buffer("seen", torch.zeros(sequences, 3, _LEVELS))

    def curve(self, sequence: int, fused: np.ndarray, mask: np.ndarray) -> MonotoneMap:
        """The curve of one image ``(X, Y, Z)``, which goes on with slope one beyond its ends."""
        least, mean, greatest = self.seen[sequence].cpu().numpy()
        change = self.slopes[sequence].cpu().numpy() @ (np.clip(_levels(fused, mask), least, greatest) - mean)
        made, unified = np.maximum.accumulate(self.knots[sequence].cpu().numpy() + change.reshape(2, -1), axis=1)
        return MonotoneMap.between(made, unified)

    def fit(self, sequence: int, examples: np.ndarray) -> None:
        """Set the curves of a sequence from rows of :func:`observed`, ``(n, L + 2 K)``."""
        levels, curves = examples[:, :_LEVELS], examples[:, _LEVELS:]
        mean, spread = levels.mean(0), np.maximum(levels.std(0), 1e-6)
        ridge = RidgeCV(_PENALTIES).fit((levels - mean) / spread, curves)
        seen = np.stack([levels.min(0), mean, levels.max(0)])
        for buffer, found in (
            (self.knots, ridge.intercept_.reshape(2, -1)),
            (self.slopes, ridge.coef_ / spread),
            (self.seen, seen),
        ):
            buffer[sequence] = torch.from_numpy(found)


def observed(fused: np.ndarray, truth: np.ndarray, mask: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Levels of an image, then the curve that leads it to the truth: knots in the image, and in the unified domain; ``(L + 2 K,)``.

    The curve is piecewise linear in the mean of image and truth, least squares of their difference (Bland & Altman, 1986): what the two do
    not share does not flatten it as it would a regression of one on the other.

    Parameters
    ----------
    fused, truth:
        ``(X, Y, Z)`` what the network made of a scan, and what it should be, unit intensity.
    domain:
        ``(257,)`` quantile function of the unified domain; the knots lie evenly between its ends.
    """
    made, wanted = (image[mask].astype(np.float64) for image in (fused, truth))
    places = np.linspace(domain[_ENDS], domain[-1 - _ENDS], KNOTS)
    hats = np.stack([np.interp((made + wanted) / 2, places, hat) for hat in np.eye(KNOTS)], axis=1)
    weights = hats.T @ hats + _STEADY * len(made) * np.eye(KNOTS)
    gap = np.linalg.solve(weights, hats.T @ (wanted - made))
    return np.concatenate([_levels(fused, mask), places - gap / 2, places + gap / 2])


def _levels(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return tissue_quantiles(image, mask)[_PLACES]
