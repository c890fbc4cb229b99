"""A target from one reference scan, without training: through its statistics and its style vector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mmh_ray.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.adapter import SiteStyle
from mmh_ray.models.style import TriPlanarStyleEncoder
from mmh_ray.models.target_bundle import Target
from mmh_ray.provenance import hash_of

SHARPNESS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.3)
"""Standard deviations, in working voxels, of the point spreads that are tried."""


def target_of_scan(
    harmonizer: Harmonizer,
    encoder: TriPlanarStyleEncoder,
    reference: Volume,
    sequence: str,
    name: str,
    digest: str,
    mask: np.ndarray | None = None,
) -> Target:
    """The look of one scan.

    The scan and its unified image are pairs of the same voxels, which give the curve; of some point spreads that is taken whose image, with
    noise of the scan's level, has the style vector nearest to the scan's.

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
    style = SiteStyle.fit([unified], [image], [image], [inside])
    curved = style.apply(torch.from_numpy(unified)).numpy() * inside
    noise = style.noise * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    soft = [replace(style, blur=width) for width in SHARPNESS]
    volumes = np.stack([image, *(one.soften(curved, inside) + noise for one in soft)]) * inside
    with torch.inference_mode():
        tensors = torch.from_numpy(volumes.astype(np.float32)), torch.from_numpy(np.stack([inside] * len(volumes)))
        vectors = torch.nn.functional.normalize(encoder(*tensors), dim=1)
    nearest = int((vectors[1:] @ vectors[0]).argmax())
    facts = {
        "reference": name,
        "reference_sha256": digest,
        "style_encoder": encoder.describe(),
        "sharpness_sigma_voxels": SHARPNESS[nearest],
    }
    return Target(
        name, {sequence: soft[nearest]}, hash_of([facts, harmonizer.bundle.hash]), f"scan:{name}", facts, {}, 0
    )
