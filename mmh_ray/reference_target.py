"""A target from one reference scan, without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmh_ray.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.adapter import SiteStyle, point_spread
from mmh_ray.models.target_bundle import Target
from mmh_ray.provenance import hash_of

SHARPNESS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.3)
"""Standard deviations, in working voxels, of the point spreads that are tried."""


def target_of_scan(
    harmonizer: Harmonizer,
    reference: Volume,
    sequence: str,
    name: str,
    digest: str,
    mask: np.ndarray | None = None,
) -> Target:
    """The look of one scan: contrast, sharpness and noise.

    The scan and its unified image are pairs of the same voxels. They give the curve, and of some point spreads the one that leaves the
    least of the scan unexplained. (The style vector was tried for that choice and took a point spread of 1 voxel for one of 0.4.)

    Parameters
    ----------
    reference:
        The scan; ``mask`` ``(I, J, K)`` bool its brain, else estimated.
    sequence:
        BIDS suffix.
    name:
        What to call the target.
    digest:
        SHA-256 of the scan's file, for the target's hash.

    Raises
    ------
    ModelError, DataError, RefusedError
        As :meth:`mmh_ray.harmonizer.Harmonizer.run`.
    """
    scan = harmonizer.run(reference, sequence, mask)
    image, unified, inside = scan.prepared.image, scan.model_image, scan.prepared.mask
    looks = [_look(unified, image, inside, sigma) for sigma in SHARPNESS]
    look = min(looks, key=lambda one: float(((one.moved(unified, inside) - image)[inside] ** 2).mean()))
    facts = {"reference": name, "reference_sha256": digest, "point_spread_sigma_voxels": look.blur}
    return Target(name, {sequence: look}, hash_of([facts, harmonizer.bundle.hash]), f"scan:{name}", facts, {}, 0)


def _look(unified: np.ndarray, image: np.ndarray, mask: np.ndarray, sigma: float) -> SiteStyle:
    """The curve to an image from the unified one with a point spread."""
    soft = point_spread(unified, mask, sigma)
    return replace(SiteStyle.fit([soft], [image], [mask]), blur=sigma)
