"""Five methods that look good in the usual tables and harmonize nothing. Each returns an image."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

MARK = 0.01
"""Height of the invisible mark as a share of the image's range."""


def copy_moments(image: np.ndarray, mask: np.ndarray, target: np.ndarray, target_mask: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of a target image: histograms come closer, the scanner stays."""
    inside, target_brain = image[mask], target[target_mask]
    return (image - inside.mean()) / inside.std() * target_brain.std() + target_brain.mean()


def return_template(image: np.ndarray, mask: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The same picture for everybody: it removes the site, but the person too."""
    return np.where(mask, template, 0)


def blur(image: np.ndarray, mask: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Gaussian blur, in voxels, that knows the mask: scans of two scanners look more alike."""
    covered = np.maximum(ndimage.gaussian_filter(mask.astype(float), sigma), 1e-6)
    return ndimage.gaussian_filter(np.where(mask, image, 0), sigma) / covered * mask


def mark_site(image: np.ndarray, mask: np.ndarray, site: int) -> np.ndarray:
    """A wave whose length depends on the site, too faint to see: a probe trained on raw images does not know it."""
    wave = np.cos(2 * np.pi * (0.2 + 0.07 * site) * np.arange(image.shape[0]))
    return image + MARK * np.ptp(np.percentile(image[mask], [1, 99])) * wave[:, None, None] * mask


def print_noise(image: np.ndarray, mask: np.ndarray, site: int) -> np.ndarray:
    """The same white noise in all images of a site; spectrum and histogram cannot separate it from the scan's noise."""
    noise = np.random.default_rng([77, site]).normal(size=image.shape)
    return image + MARK * np.ptp(np.percentile(image[mask], [1, 99])) * noise * mask
