"""Do images gather by site or by person? Every function takes features ``(n, F)`` and labels ``(n,)``.

Standardise features first (:func:`standardise`), so that no unit outweighs the others. By *site*, gathering should fall; by *subject* it
must not: a method that returns one picture for everybody mixes sites perfectly and people, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.special import entr
from scipy.stats import chi2
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

PERPLEXITY = 30
"""Neighbours that count in :func:`lisi`, as its authors chose; fewer in a cohort of fewer than 91 images."""
SIGNIFICANCE = 0.05
"""Level of the tests of :func:`kbet`."""

Labels = Sequence[str] | np.ndarray


def standardise(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1, float64; columns that do not vary become 0."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(features).max(axis=0), 1e-300)
    return np.where(varies, centred / np.where(varies, spread, 1), 0.0)


def silhouettes(features: np.ndarray, labels: Labels) -> np.ndarray:
    """``(n,)`` silhouettes ``(b − a) / max(a, b)``: a, b mean distances to the image's own and to the nearest other label's images.

    Rousseeuw 1987. Range −1 to 1; by site, lower is better (about 0: sites overlap); by subject, higher. Their mean is the figure, and
    being per image it can go into :func:`mmh_ray.evaluation.statistics.bootstrap.bootstrap`. NaN with fewer than two labels, or with
    one image a label.
    Cannot see: sites that are apart within a ring or a line; a difference in a few of many features drowns in the distance.
    """
    kinds = len(np.unique(labels))
    if not 2 <= kinds < len(features):
        return np.full(len(features), np.nan)
    return silhouette_samples(features, np.asarray(labels))


def adjusted_rand(features: np.ndarray, labels: Labels, seed: int = 0) -> float:
    """Adjusted Rand index of the labels and k-means clusters, as many as labels: agreement of pairs beyond chance.

    Hubert & Arabie 1985. Range −0.5 to 1, 0 by chance; by site, lower is better; by subject, higher. Cannot see: sites that k-means does
    not split because people differ more than sites do.
    """
    return agreement(gathered(features, len(np.unique(labels)), seed), labels)


def agreement(clusters: np.ndarray, labels: Labels) -> float:
    """Adjusted Rand index of two groupings: pairs of images that are together in both, against what chance would give.

    ``(Σ C(n_ij, 2) − e) / ((Σ C(a_i, 2) + Σ C(b_j, 2)) / 2 − e)``, n_ij images of cluster i and label j, a and b their sums,
    ``e = Σ C(a_i, 2) Σ C(b_j, 2) / C(n, 2)``; 1 where both are one group, or all single. Quick enough for a thousand draws.
    """
    _, one = np.unique(clusters, return_inverse=True)
    _, other = np.unique(np.asarray(labels), return_inverse=True)
    together, a, b = (_pairs(codes) for codes in (one * (other.max() + 1) + other, one, other))
    chance = a * b / max(len(one) * (len(one) - 1) / 2, 1)
    most = (a + b) / 2
    return 1.0 if most == chance else float((together - chance) / (most - chance))


def _pairs(codes: np.ndarray) -> float:
    """Pairs of images of one code."""
    counts = np.bincount(codes).astype(np.float64)
    return float((counts * (counts - 1)).sum() / 2)


def gathered(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """``(n,)`` cluster of each image by k-means, numbered from 0."""
    with warnings.catch_warnings():  # a method that gives everybody one picture leaves fewer places than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=10, random_state=seed).fit_predict(features)


def lisi(features: np.ndarray, labels: Labels, perplexity: int = PERPLEXITY) -> np.ndarray:
    """``(n,)`` local inverse Simpson index: how many labels are effectively around an image, scaled to 0 … 1.

    ``(1 / Σ p² − 1) / (1 / Σ q² − 1)``: p the labels' shares among the neighbours (the image itself excluded), weighted by a Gaussian of
    the distance whose perplexity is ``perplexity``, at most a third of the other images; q their shares in the cohort. Korsunsky et al.
    2019, there unscaled. 0: one label around; 1: labels as mixed as in the cohort; labels dealt at random come somewhat below it, as
    neighbours are few. By site, higher is better; by subject, lower. Cannot see: differences between sites that are smaller than those
    between neighbouring people. NaN with a single label.

    As many neighbours as a label has images see the most: the default suits sites, persons want fewer.
    """
    codes, shares = _codes(labels)
    effective = 1 / float((shares**2).sum())
    if effective <= 1:
        return np.full(len(features), np.nan)
    perplexity = min(perplexity, max(2, (len(features) - 1) // 3))
    squared, neighbours = _nearest(features, min(len(features) - 1, 3 * perplexity))
    weights = _gaussian_weights(squared, perplexity)
    around = np.stack([(weights * (codes[neighbours] == code)).sum(axis=1) for code in range(len(shares))], axis=1)
    return (1 / (around**2).sum(axis=1) - 1) / (effective - 1)


def kbet(features: np.ndarray, labels: Labels) -> np.ndarray:
    """``(n,)`` 1 where the image's neighbours have other labels than the cohort would let expect (rejected), else 0.

    Pearson's χ² of the labels of the k nearest images against their shares in the cohort, k a quarter of a label's mean number of
    images (at least 5), at the 5 % level; Büttner et al. 2019. The mean, the rejection rate, is the figure: by site, lower is better,
    about .05 for labels dealt at random. Cannot see: what lies below the neighbours' distance; with few images it rejects little.
    """
    codes, shares = _codes(labels)
    k = min(len(features) - 1, max(5, len(features) // (4 * len(shares))))
    _, neighbours = _nearest(features, k)
    seen = np.stack([(codes[neighbours] == code).sum(axis=1) for code in range(len(shares))], axis=1)
    statistic = ((seen - k * shares) ** 2 / (k * shares)).sum(axis=1)
    return (chi2.sf(statistic, max(1, len(shares) - 1)) < SIGNIFICANCE).astype(float)


def same_subject_nearest(features: np.ndarray, subject: Labels, site: Labels) -> np.ndarray:
    """``(n,)`` 1 where the nearest image *of another site* shows the same subject, else 0; NaN where the subject was seen at one site only.

    The mean is the share of traveling subjects that are found again; higher is better: harmonization must bring a person's scans
    together, not everybody's. Range 0 to 1. A method that returns one picture for all falls to chance. Cannot see: anything without
    traveling subjects.
    """
    who, where = np.asarray(subject), np.asarray(site)
    squared = _squared_distances(features)
    squared[where[:, None] == where] = np.inf
    elsewhere = ((who[:, None] == who) & (where[:, None] != where)).any(axis=1)
    # Ties must not be won by order of rows: an image of the same subject has to be strictly nearer than everybody else.
    own = np.where(who[:, None] == who, squared, np.inf).min(axis=1)
    others = np.where(who[:, None] != who, squared, np.inf).min(axis=1)
    return np.where(elsewhere, (own < others).astype(float), np.nan)


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` t-SNE coordinates (van der Maaten & Hinton 2008) for a picture. Distances between far groups mean nothing in it."""
    perplexity = min(30.0, max(2.0, (len(features) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)


def umap(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` UMAP coordinates (McInnes et al. 2018) for a picture; what holds for :func:`tsne` holds for it."""
    from umap import UMAP  # compiles at import: seconds

    return UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1).fit_transform(features)


def _codes(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers, and the share of each in the cohort."""
    _, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return codes, counts / counts.sum()


def _nearest(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices ``(n, k)`` of the nearest other images."""
    distances, indices = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()
    return distances**2, indices


def _gaussian_weights(squared: np.ndarray, perplexity: float) -> np.ndarray:
    """``(n, k)`` weights of sum 1 whose entropy is ``log(perplexity)``: the precision of each row by bisection."""
    squared = squared - squared[:, :1]
    low, high = np.zeros(len(squared)), np.full(len(squared), np.inf)
    precision = 1 / np.maximum(squared.mean(axis=1), 1e-300)
    for _ in range(60):
        weights = np.exp(-precision[:, None] * squared)
        weights /= weights.sum(axis=1, keepdims=True)
        wide = entr(weights).sum(axis=1) > np.log(perplexity)
        low, high = np.where(wide, precision, low), np.where(wide, high, precision)
        precision = np.where(np.isinf(high), np.minimum(2 * low, 1e300), (low + high) / 2)
    return weights


def _squared_distances(features: np.ndarray) -> np.ndarray:
    x = features.astype(np.float64)
    lengths = (x**2).sum(axis=1)
    return np.maximum(lengths[:, None] + lengths - 2 * x @ x.T, 0)
