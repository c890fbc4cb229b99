"""The last step into the unified domain: an increasing curve, told from the image itself.

A network trained with squared error draws what it is unsure of towards the middle: fluid comes out too near to tissue, grey matter
too near to one of its neighbours. How far hangs on what the scan shows, on its contrast, blur and noise, and so on its site. Simulated
people kept aside, whose truth is known, tell which curve undoes it, given the tissue quantiles of what the network made. That is
no histogram matching: people differ there in how much of each tissue they have, too, and the fit tells the one from the other as far as
these quantiles let it. Only what varies most in simulation counts, and only as far as it was seen to; pure fluid goes where it goes for
everyone.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from mmh_ray.imaging.intensity import MonotoneMap, tissue_quantiles

KNOTS = 9
COMPONENTS = 3
"""Principal components of the levels that count. Real scans differ from simulated ones in those beyond."""

_PLACES = slice(4, -4, 8)  # of 257 quantiles
_LEVELS = len(range(257)[_PLACES])
_ENDS = 3  # of 257 quantiles are left out of the knots at either end
_STEADY = 1e-3  # share of voxels that a knot must have for its own, else it is drawn to no change
_SEEN = (0.05, 0.95)  # quantiles of the components in fitting, beyond which nothing is concluded


class Calibration(nn.Module):
    """Curves of all sequences; one that was never fitted changes nothing.

    Parameters
    ----------
    sequences:
        Their number ``S``.
    """

    knots: Tensor
    """``(S, 2, K)``: intensities of the network's fused image, and those of the unified domain that they go to on average."""
    mean: Tensor
    """``(S, L)``: mean levels, that is, tissue quantiles of the fused image."""
    axes: Tensor
    """``(S, C, L)``: their principal components."""
    seen: Tensor
    """``(S, 2, C)``: least and greatest component; what lies beyond counts as the end."""
    slopes: Tensor
    """``(S, 2 K, C)``: how the knots change with the components."""

    def __init__(self, sequences: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(0, 1, KNOTS).expand(sequences, 2, -1).clone())
        self.register_buffer("mean", torch.zeros(sequences, _LEVELS))
        self.register_buffer("axes", torch.zeros(sequences, COMPONENTS, _LEVELS))
        self.register_buffer("seen", torch.zeros(sequences, 2, COMPONENTS))
        self.register_buffer("slopes", torch.zeros(sequences, 2 * KNOTS, COMPONENTS))

    def curve(self, sequence: int, fused: np.ndarray, mask: np.ndarray) -> MonotoneMap:
        """The curve of one image ``(X, Y, Z)``, which goes on with slope one beyond its ends."""
        knots, mean, axes, seen, slopes = (
            buffer[sequence].cpu().numpy() for buffer in (self.knots, self.mean, self.axes, self.seen, self.slopes)
        )
        components = np.clip(axes @ (_levels(fused, mask) - mean), *seen)
        made, unified = np.maximum.accumulate(knots + (slopes @ components).reshape(2, -1), axis=1)
        return MonotoneMap.between(made, unified)

    def fit(self, sequence: int, examples: np.ndarray, middle: float, fluid: float) -> None:
        """Set the curves of a sequence.

        Parameters
        ----------
        examples:
            ``(n, L + 2 K)`` rows of :func:`observed`.
        middle, fluid:
            Median of the unified domain and what pure fluid is there: from the one to the other the curves of all scans come together.
        """
        levels, curves = examples[:, :_LEVELS], examples[:, _LEVELS:]
        found = PCA(COMPONENTS).fit(levels)
        components = found.transform(levels)
        line = LinearRegression().fit(components, curves)
        knots = line.intercept_.reshape(2, -1)
        own = np.tile(np.clip((knots[1] - fluid) / (middle - fluid), 0, 1), 2)
        self.knots[sequence] = torch.from_numpy(knots)
        self.mean[sequence] = torch.from_numpy(found.mean_)
        self.axes[sequence] = torch.from_numpy(found.components_)
        self.seen[sequence] = torch.from_numpy(np.quantile(components, _SEEN, axis=0))
        self.slopes[sequence] = torch.from_numpy(own[:, None] * line.coef_)


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
