"""Makes a target from one reference scan without training, by its statistics and its style vector."""

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
"""Standard deviations of the candidate point spreads, in voxels of the working grid."""

TIE = 0.02
"""Point spreads whose error is at most this share above the smallest error are compared by style vector."""


@one_thread()
def target_of_scan(
    harmonizer: Harmonizer,
    reference: Volume,
    sequence: str,
    name: str,
    digest: str,
    mask: np.ndarray | Volume | None = None,
    style_config: StyleConfig | None = None,
) -> Target:
    """Measure the style of one scan (contrast, sharpness and noise), and return it as a target.

    The scan and its unified image are pairs of the same voxels. A curve is fitted to them for each candidate point
    spread. Among the point spreads with the smallest errors, the one is chosen whose image has the style vector nearest
    to the scan's. (The style vector alone was tried: it mistook a point spread of 1 voxel for one of 0.4.)

    As in training, noise of the scan's own level is added to the model's input and subtracted from the image to
    explain. Otherwise the noise that the model leaves would favour the sharpest point spread.

    Parameters
    ----------
    reference:
        The scan.
    sequence:
        BIDS suffix.
    name:
        Name of the target.
    digest:
        SHA-256 of the scan's file, for the target's hash.
    mask:
        Brain mask, ``(I, J, K)`` bool or a volume on any grid; None estimates one.
    style_config:
        The style encoder; by default the one that is shipped with the package.

    Returns
    -------
    The target; its facts include ``style_distance``, 1 - cosine between the scan and its own image moved to its style.

    Raises
    ------
    ModelError, DataError, RefusedError
        As :meth:`mmh_ray.harmonization.harmonizer.Harmonizer.run`.
    """
    ready = harmonizer.ready(reference, sequence, mask)
    image = ready.prepared.image
    brain = ready.prepared.mask
    rng = np.random.default_rng(harmonizer.settings.seed)
    noise = rng.normal(0, noise_level(image, brain), image.shape)
    noise = (noise * brain).astype(np.float32)
    noisier = replace(ready, prepared=replace(ready.prepared, image=image + noise))
    (inferred,) = harmonizer.infer(noisier)
    unified = inferred.values

    styles = [_style(unified, image, brain, sigma) for sigma in SHARPNESS]
    moved_images = [style.moved(unified, brain) for style in styles]
    explained = image - noise
    unexplained = np.array([float(((moved - explained)[brain] ** 2).mean()) for moved in moved_images])
    best_by_voxels = np.flatnonzero(unexplained <= (1 + TIE) * unexplained.min())

    encoder = make_style_encoder(style_config or StyleConfig(), harmonizer.bundle.config.grid.spacing_mm)
    planes = encoder.planes_of(reference.affine)
    grain = (rng.standard_normal(image.shape) * brain).astype(np.float32)
    distances: dict[int, float] = {}
    for index in best_by_voxels.tolist():
        with_noise = moved_images[index] + styles[index].noise * grain
        distances[index] = _distance(encoder, with_noise, image, brain, planes)
    best = min(distances, key=lambda index: distances[index])

    mask_bytes = np.packbits(ready.prepared.brain).tobytes()
    facts = {
        "reference": name,
        "reference_sha256": digest,
        "reference_mask_sha256": None if mask is None else hashlib.sha256(mask_bytes).hexdigest(),
        "point_spread_sigma_voxels": styles[best].blur,
        "style_distance": round(distances[best], 4),  # keeps the last digits out of the target's hash
        "style_encoder": encoder.describe(),
    }
    target_hash = hash_of([facts, harmonizer.bundle.hash])
    return Target(
        site=name,
        styles={sequence: styles[best]},
        hash=target_hash,
        uri=f"scan:{name}",
        facts=facts,
        weights={},
        rank=0,
    )


def _style(unified: np.ndarray, image: np.ndarray, mask: np.ndarray, sigma: float) -> SiteStyle:
    """Fit the curve from a unified image with a point spread to an image."""
    soft = point_spread(unified, mask, sigma)
    return replace(SiteStyle.fit([soft], [image], [mask]), blur=sigma)


@torch.inference_mode()
def _distance(
    encoder: TriPlanarStyleEncoder, image: np.ndarray, reference: np.ndarray, mask: np.ndarray, planes: torch.Tensor
) -> float:
    """1 - cosine of the style vectors of two volumes ``(X, Y, Z)`` with one mask; ``planes`` ``(1, 3)`` are used."""
    volumes = torch.from_numpy(np.stack([image, reference]).astype(np.float32))
    masks = torch.from_numpy(np.stack([mask, mask]))
    image_vector, reference_vector = encoder(volumes, masks, planes.expand(2, -1))
    return 1 - float(torch.cosine_similarity(image_vector, reference_vector, dim=0))
