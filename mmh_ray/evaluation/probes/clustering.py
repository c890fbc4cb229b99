"""Measures whether images cluster by site or by person, from features ``(n, F)`` and labels ``(n,)``.

Standardise features first (:func:`standardise`), so that no unit dominates. Harmonization should reduce clustering by
*site* but not by *subject*: a method that returns one template for everybody mixes sites perfectly, but persons too.
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
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

PERPLEXITY = 30
"""Effective number of neighbours in :func:`lisi`, as its authors chose; fewer in cohorts of fewer than 91 images."""
SIGNIFICANCE = 0.05
"""Level of the tests of :func:`kbet`."""

Labels = Sequence[str] | np.ndarray


def standardise(features: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1, float64; columns that do not vary become 0.

    scikit-learn's ``StandardScaler`` is not used, because its test for constant columns is too strict: a column that
    varies only by rounding errors of the features would be scaled to a standard deviation of 1.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    largest = np.maximum(np.abs(features).max(axis=0), 1e-300)
    varies = deviation > 1e-9 * largest
    divisor = np.where(varies, deviation, 1)
    return np.where(varies, centred / divisor, 0.0)


def silhouettes(features: np.ndarray, labels: Labels) -> np.ndarray:
    """``(n,)`` silhouettes ``(b − a) / max(a, b)``.

    a is the mean distance to images with the same label, b to those with the nearest other label. Rousseeuw 1987. Range
    −1 to 1; by site, lower is better (about 0: sites overlap); by subject, higher. Tables show the mean; the values per
    image are used in :func:`mmh_ray.evaluation.statistics.bootstrap.bootstrap`. NaN with fewer than two labels, or if
    every label has one image. Cannot see: sites that are separate within a ring or a line; a difference in a few of
    many features.
    """
    label_count = len(np.unique(labels))
    if not 2 <= label_count < len(features):
        return np.full(len(features), np.nan)
    return silhouette_samples(features, np.asarray(labels))


def agreement(clusters: np.ndarray, labels: Labels) -> float:
    """Adjusted Rand index of labels and k-means clusters: agreement of pairs beyond chance.

    Hubert & Arabie 1985. Range −0.5 to 1, 0 by chance; by site, lower is better; by subject, higher. Cannot see: sites
    that k-means does not split because people differ more than sites do.

    Equals scikit-learn's ``adjusted_rand_score``, which checks its arguments for far longer than the counting takes:
    the bootstrap calls this for every draw of every method.
    """
    cluster_codes, _ = _codes(clusters)
    label_codes, _ = _codes(labels)
    images = np.zeros((label_codes.max() + 1, cluster_codes.max() + 1), np.int64)
    np.add.at(images, (label_codes, cluster_codes), 1)
    together = _ordered_pairs(images)
    label_only = _ordered_pairs(images.sum(axis=1)) - together
    cluster_only = _ordered_pairs(images.sum(axis=0)) - together
    apart = len(clusters) * (len(clusters) - 1) - together - label_only - cluster_only
    if label_only == cluster_only == 0:
        return 1.0
    beyond_chance = 2 * (together * apart - label_only * cluster_only)
    same_label = together + label_only
    same_cluster = together + cluster_only
    return beyond_chance / (same_label * (label_only + apart) + same_cluster * (cluster_only + apart))


def _ordered_pairs(counts: np.ndarray) -> int:
    """Number of ordered pairs within groups of these sizes."""
    return int((counts * (counts - 1)).sum())


def clusters_of(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """``(n,)`` cluster of each image by k-means, numbered from 0."""
    with warnings.catch_warnings():  # with one template for everybody there are fewer distinct points than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=10, random_state=seed).fit_predict(features)


def lisi(features: np.ndarray, labels: Labels, perplexity: int = PERPLEXITY) -> np.ndarray:
    """``(n,)`` local inverse Simpson index: effective number of labels around an image, scaled to 0 … 1.

    ``(1 / Σ p² − 1) / (1 / Σ q² − 1)``, with p the labels' shares among the neighbours (without the image itself) and q
    their shares in the cohort. Neighbours have Gaussian weights of the given perplexity, which is at most a third of
    the other images. Korsunsky et al. 2019, there unscaled. 0: one label around; 1: labels as mixed as in the cohort;
    random labels are slightly below 1, because neighbours are few. By site, higher is better; by subject, lower.
    Cannot see: differences between sites that are smaller than those between neighbouring people. NaN with a single
    label.

    It is most sensitive if the perplexity equals the number of images per label: the default suits sites, and persons
    need less.
    """
    codes, cohort_shares = _codes(labels)
    labels_in_cohort = 1 / float((cohort_shares**2).sum())  # inverse Simpson index
    if labels_in_cohort <= 1:
        return np.full(len(features), np.nan)
    others = len(features) - 1
    perplexity = min(perplexity, max(2, others // 3))
    squared_distances, neighbours = _nearest(features, min(others, 3 * perplexity))
    weights = _gaussian_weights(squared_distances, perplexity)
    neighbour_codes = codes[neighbours]
    shares = [(weights * (neighbour_codes == code)).sum(axis=1) for code in range(len(cohort_shares))]
    labels_around = 1 / (np.stack(shares, axis=1) ** 2).sum(axis=1)
    return (labels_around - 1) / (labels_in_cohort - 1)


def kbet(features: np.ndarray, labels: Labels) -> np.ndarray:
    """``(n,)`` 1 where the labels of an image's neighbours differ from those of the cohort (rejected), else 0.

    Pearson's χ² at the 5 % level, of the labels of the k nearest images against their shares in the cohort; k is a
    quarter of a label's mean number of images, at least 5. Büttner et al. 2019. The reported value is the mean, the
    rejection rate: by site, lower is better, about .05 for random labels. Cannot see: differences smaller than the
    distance of neighbours. With few images it rejects little.
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

    NaN for subjects scanned at one site only. The mean is the share of images whose person is found at another site.
    Range 0 to 1; higher is better: harmonization must bring together the scans of a person, not those of everybody.
    A method that returns one template for everybody scores at chance. Cannot see: anything without traveling subjects.
    """
    subjects = np.asarray(subject)
    sites = np.asarray(site)
    same_subject = subjects[:, None] == subjects
    same_site = sites[:, None] == sites
    squared_distances = euclidean_distances(features.astype(np.float64), squared=True)
    squared_distances[same_site] = np.inf
    # The result must not depend on the order of rows in a tie: the same subject must be strictly nearer than others.
    to_same_subject = np.where(same_subject, squared_distances, np.inf).min(axis=1)
    to_others = np.where(same_subject, np.inf, squared_distances).min(axis=1)
    was_elsewhere = (same_subject & ~same_site).any(axis=1)
    return np.where(was_elsewhere, (to_same_subject < to_others).astype(float), np.nan)


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` t-SNE coordinates (van der Maaten & Hinton 2008) for a picture.

    Distances between groups that are far apart have no meaning.
    """
    others = len(features) - 1
    perplexity = min(30.0, max(2.0, others / 3))
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return model.fit_transform(features)


def umap(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(n, 2)`` UMAP coordinates (McInnes et al. 2018) for a picture, with the same limit as :func:`tsne`."""
    from umap import UMAP  # slow to import: it compiles code

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
    squared = squared_distances - squared_distances[:, :1]  # so that the nearest image's weight does not underflow
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
