"""Do images gather by site or by person? Every function takes features ``(n, F)`` and labels ``(n,)``.

Standardise features first (:func:`standardise`), so that no unit outweighs the others. By *site*, gathering should
fall. By *subject* it must not: a method that returns one picture for everybody mixes sites perfectly, and people,
too.
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
from sklearn.metrics import adjusted_rand_score, silhouette_samples
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

PERPLEXITY = 30
"""Neighbours that count in :func:`lisi`, as its authors chose; fewer in a cohort of fewer than 91 images."""
SIGNIFICANCE = 0.05
"""Level of the tests of :func:`kbet`."""

Labels = Sequence[str] | np.ndarray


def standardise(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1, float64; columns that do not vary become 0.

    Not scikit-learn's ``StandardScaler``: it takes a column for constant only within the rounding of its own sum. A
    column that varies by the rounding of the features' arithmetic would be blown up to a standard deviation of 1.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    largest = np.maximum(np.abs(features).max(axis=0), 1e-300)
    varies = deviation > 1e-9 * largest
    divisor = np.where(varies, deviation, 1)
    return np.where(varies, centred / divisor, 0.0)


def silhouettes(features: np.ndarray, labels: Labels) -> np.ndarray:
    """``(n,)`` silhouettes ``(b − a) / max(a, b)``.

    a is the mean distance to the images of the own label, b to those of the nearest other one.

    Rousseeuw 1987. Range −1 to 1; by site, lower is better (about 0: sites overlap); by subject, higher. Their mean
    is what tables show; being per image they can go into :func:`mmh_ray.evaluation.statistics.bootstrap.bootstrap`.
    NaN with fewer than two labels, or with one image a label. Cannot see: sites that are apart within a ring or a
    line. A difference in a few of many features drowns in the distance.
    """
    label_count = len(np.unique(labels))
    if not 2 <= label_count < len(features):
        return np.full(len(features), np.nan)
    return silhouette_samples(features, np.asarray(labels))


def agreement(clusters: np.ndarray, labels: Labels) -> float:
    """Adjusted Rand index of labels and k-means clusters, as many as labels: agreement of pairs beyond chance.

    Hubert & Arabie 1985. Range −0.5 to 1, 0 by chance; by site, lower is better; by subject, higher. Cannot see: sites
    that k-means does not split because people differ more than sites do.
    """
    return float(adjusted_rand_score(np.asarray(labels), clusters))


def clusters_of(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """``(n,)`` cluster of each image by k-means, numbered from 0."""
    with warnings.catch_warnings():  # a method that gives everybody one picture leaves fewer places than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=10, random_state=seed).fit_predict(features)


def lisi(features: np.ndarray, labels: Labels, perplexity: int = PERPLEXITY) -> np.ndarray:
    """``(n,)`` local inverse Simpson index: how many labels are effectively around an image, scaled to 0 … 1.

    ``(1 / Σ p² − 1) / (1 / Σ q² − 1)``: p the labels' shares among the neighbours (the image itself excluded),
    weighted by a Gaussian of the distance whose perplexity is ``perplexity``, at most a third of the other images; q
    their shares in the cohort. Korsunsky et al. 2019, there unscaled. 0: one label around; 1: labels as mixed as in
    the cohort; labels dealt at random come somewhat below it, as neighbours are few. By site, higher is better; by
    subject, lower. Cannot see: differences between sites that are smaller than those between neighbouring people. NaN
    with a single label.

    As many neighbours as a label has images see the most: the default suits sites, persons want fewer.
    """
    codes, cohort_shares = _codes(labels)
    labels_in_cohort = 1 / float((cohort_shares**2).sum())  # inverse Simpson index
    if labels_in_cohort <= 1:
        return np.full(len(features), np.nan)
    others = len(features) - 1
    perplexity = min(perplexity, max(2, others // 3))
    squared_distances, neighbours = _nearest(features, min(others, 3 * perplexity))
    weights = _gaussian_weights(squared_distances, perplexity)
    shares = []
    for code in range(len(cohort_shares)):
        has_label = codes[neighbours] == code
        shares.append((weights * has_label).sum(axis=1))
    labels_around = 1 / (np.stack(shares, axis=1) ** 2).sum(axis=1)
    return (labels_around - 1) / (labels_in_cohort - 1)


def kbet(features: np.ndarray, labels: Labels) -> np.ndarray:
    """``(n,)`` 1 where the image's neighbours have other labels than the cohort would let expect (rejected), else 0.

    Pearson's χ² of the labels of the k nearest images against their shares in the cohort, k a quarter of a label's
    mean number of images (at least 5), at the 5 % level; Büttner et al. 2019. The mean, the rejection rate, is the
    figure: by site, lower is better, about .05 for labels dealt at random. Cannot see: what lies below the
    neighbours' distance; with few images it rejects little.
    """
    codes, cohort_shares = _codes(labels)
    label_count = len(cohort_shares)
    quarter_of_label = len(features) // (4 * label_count)
    k = min(len(features) - 1, max(5, quarter_of_label))
    _, neighbours = _nearest(features, k)
    neighbour_codes = codes[neighbours]
    counts = [(neighbour_codes == code).sum(axis=1) for code in range(label_count)]
    observed = np.stack(counts, axis=1)
    expected = k * cohort_shares
    statistic = ((observed - expected) ** 2 / expected).sum(axis=1)
    p_values = chi2.sf(statistic, max(1, label_count - 1))
    return (p_values < SIGNIFICANCE).astype(float)


def same_subject_nearest(features: np.ndarray, subject: Labels, site: Labels) -> np.ndarray:
    """``(n,)`` 1 where the nearest image *of another site* shows the same subject, else 0.

    NaN for subjects seen at one site only.

    The mean is the share of traveling subjects that are found again; higher is better: harmonization must bring a
    person's scans together, not everybody's. Range 0 to 1. A method that returns one picture for all falls to chance.
    Cannot see: anything without traveling subjects.
    """
    subjects = np.asarray(subject)
    sites = np.asarray(site)
    same_subject = subjects[:, None] == subjects
    same_site = sites[:, None] == sites
    squared_distances = euclidean_distances(features.astype(np.float64), squared=True)
    squared_distances[same_site] = np.inf
    # Ties must not be won by order of rows: an image of the same subject has to be strictly nearer than everybody else.
    to_same_subject = np.where(same_subject, squared_distances, np.inf).min(axis=1)
    to_others = np.where(same_subject, np.inf, squared_distances).min(axis=1)
    was_elsewhere = (same_subject & ~same_site).any(axis=1)
    return np.where(was_elsewhere, (to_same_subject < to_others).astype(float), np.nan)


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` t-SNE coordinates (van der Maaten & Hinton 2008) for a picture.

    Distances between far groups mean nothing in it.
    """
    others = len(features) - 1
    perplexity = min(30.0, max(2.0, others / 3))
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return model.fit_transform(features)


def umap(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` UMAP coordinates (McInnes et al. 2018) for a picture; what holds for :func:`tsne` holds for it."""
    from umap import UMAP  # compiles at import: seconds

    others = len(features) - 1
    model = UMAP(n_neighbors=min(15, others), random_state=seed, n_jobs=1)
    return model.fit_transform(features)


def _codes(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers, and the share of each in the cohort."""
    names = np.asarray(labels)
    _, codes, counts = np.unique(names, return_inverse=True, return_counts=True)
    shares = counts / counts.sum()
    return codes, shares


def _nearest(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices ``(n, k)`` of the nearest other images."""
    distances, indices = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()
    return distances**2, indices


def _gaussian_weights(squared_distances: np.ndarray, perplexity: float) -> np.ndarray:
    """``(n, k)`` weights of sum 1 whose entropy is ``log(perplexity)``: the precision of each row by bisection."""
    squared = squared_distances - squared_distances[:, :1]  # so that the nearest has a weight that does not vanish
    low = np.zeros(len(squared))
    high = np.full(len(squared), np.inf)
    precision = 1 / np.maximum(squared.mean(axis=1), 1e-300)
    for _ in range(60):
        weights = np.exp(-precision[:, None] * squared)
        weights /= weights.sum(axis=1, keepdims=True)
        is_wide = entr(weights).sum(axis=1) > np.log(perplexity)
        low = np.where(is_wide, precision, low)
        high = np.where(is_wide, high, precision)
        doubled = np.minimum(2 * low, 1e300)
        precision = np.where(np.isinf(high), doubled, (low + high) / 2)
    return weights
