"""A target from one reference scan, without training: from its statistics and its style vector."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch

from mmh_ray.config import StyleConfig
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, make_style_encoder
from mmh_ray.models.target.adapter import SiteStyle, point_spread
from mmh_ray.models.target.bundle import Target
from mmh_ray.provenance import hash_of
from mmh_ray.threads import one_thread

SHARPNESS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.3)
"""Standard deviations, in working voxels, of the point spreads that are tried."""

TIE = 0.02
"""Share by which a point spread may leave more of the scan unexplained than the best and still be chosen for its style."""


@one_thread()
def target_of_scan(
    harmonizer: Harmonizer,
    reference: Volume,
    sequence: str,
    name: str,
    digest: str,
    mask: np.ndarray | Volume | None = None,
    style: StyleConfig | None = None,
) -> Target:
    """The look of one scan: contrast, sharpness and noise.

    The scan and its unified image are pairs of the same voxels. They give the curve, and of some point spreads those that leave the
    least of the scan unexplained; of these the one whose image has the style vector nearest to the scan's. (The style vector alone
    was tried for that choice and took a point spread of 1 voxel for one of 0.4.) Noise of the scan's own level is added to what the
    global model sees and taken from what is to be explained, as in training: what the model leaves of the scan's noise would else
    speak for the sharpest.

    Parameters
    ----------
    reference:
        The scan; ``mask`` its brain, ``(I, J, K)`` bool or a volume on any grid, else estimated.
    sequence:
        BIDS suffix.
    name:
        What to call the target.
    digest:
        SHA-256 of the scan's file, for the target's hash.
    style:
        The style encoder; by default the one that ships inside the package.

    Returns
    -------
    Its facts tell the ``style_distance`` (1 - cosine) of the reference's own image, moved to its look, from the reference.

    Raises
    ------
    ModelError, DataError, RefusedError
        As :meth:`mmh_ray.harmonization.harmonizer.Harmonizer.run`.
    """
    ready = harmonizer.ready(reference, sequence, mask)
    image, inside, rng = ready.prepared.image, ready.prepared.mask, np.random.default_rng(harmonizer.settings.seed)
    noise = (rng.normal(0, noise_level(image, inside), image.shape) * inside).astype(np.float32)
    (seen,) = harmonizer.infer(replace(ready, prepared=replace(ready.prepared, image=image + noise)))
    encoder = make_style_encoder(style or StyleConfig(), harmonizer.bundle.config.grid.spacing_mm)
    looks = [_look(seen.values, image, inside, sigma) for sigma in SHARPNESS]
    moved = [look.moved(seen.values, inside) for look in looks]
    left = np.array([float(((one - (image - noise))[inside] ** 2).mean()) for one in moved])
    grain = (rng.standard_normal(image.shape) * inside).astype(np.float32)
    near = [index for index in range(len(looks)) if left[index] <= (1 + TIE) * left.min()]
    planes = encoder.planes_of(reference.affine)
    styled = {index: moved[index] + looks[index].noise * grain for index in near}
    distances = {index: _distance(encoder, styled[index], image, inside, planes) for index in near}
    best = min(near, key=lambda index: distances[index])
    brain = np.packbits(ready.prepared.brain).tobytes()
    facts = {
        "reference": name,
        "reference_sha256": digest,
        "reference_mask_sha256": None if mask is None else hashlib.sha256(brain).hexdigest(),
        "point_spread_sigma_voxels": looks[best].blur,
        "style_distance": round(distances[best], 4),  # the target's hash must not hang on the last digits
        "style_encoder": encoder.describe(),
    }
    return Target(name, {sequence: looks[best]}, hash_of([facts, harmonizer.bundle.hash]), f"scan:{name}", facts, {}, 0)


def _look(unified: np.ndarray, image: np.ndarray, mask: np.ndarray, sigma: float) -> SiteStyle:
    """The curve to an image from the unified one with a point spread."""
    soft = point_spread(unified, mask, sigma)
    return replace(SiteStyle.fit([soft], [image], [mask]), blur=sigma)


@torch.inference_mode()
def _distance(
    encoder: TriPlanarStyleEncoder, image: np.ndarray, reference: np.ndarray, mask: np.ndarray, planes: torch.Tensor
) -> float:
    """1 - cosine of the style vectors of two volumes ``(X, Y, Z)`` of one mask, by the planes ``(1, 3)`` that count."""
    volumes = torch.from_numpy(np.stack([image, reference]).astype(np.float32))
    one, other = encoder(volumes, torch.from_numpy(np.stack([mask, mask])), planes.expand(2, -1))
    return 1 - float(torch.cosine_similarity(one, other, dim=0))
