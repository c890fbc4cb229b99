"""Unifies volumes of the target site and of other sites with the frozen global model, and draws training batches.

Needs no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmh_ray.config import Config
from mmh_ray.distributed.target_plan import Row
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.bundle import Bundle
from mmh_ray.models.target.fine_tuner import TargetBatch, UnifiedVolume, batch_of
from mmh_ray.shards import PreparedStore


class TargetVolumes:
    """Unifies volumes of a store, and draws batches of them.

    Parameters
    ----------
    sequence:
        BIDS suffix of all volumes.
    config:
        Uses ``target``, ``harmonize`` and ``restyle``.
    """

    def __init__(self, store: PreparedStore, bundle: Bundle, sequence: str, config: Config) -> None:
        self.store = store
        self.model = bundle.model
        self.device = next(bundle.model.parameters()).device
        self.label = bundle.sequence_index(sequence)
        self.spacing_mm = bundle.config.grid.spacing_mm
        self.config = config
        self.generator = torch.Generator().manual_seed(config.target.seed)
        self.noise_rng = np.random.default_rng(config.target.seed)

    def of_site(self, rows: Sequence[Row], styles: int) -> list[UnifiedVolume]:
        """Volumes of the target site, each unchanged and in ``styles`` random styles."""
        volumes = []
        for row in rows:
            scan, mask = self.store.read(row)
            volumes.append(self._of_target(scan, mask, is_restyled=False))
            for _ in range(styles):
                volumes.append(self._of_target(scan, mask, is_restyled=True))
        return volumes

    def _of_target(self, scan: np.ndarray, mask: np.ndarray, is_restyled: bool) -> UnifiedVolume:
        def styled(image: np.ndarray) -> np.ndarray:
            if not is_restyled:
                return image
            image_tensor = torch.from_numpy(image)
            mask_tensor = torch.from_numpy(mask)
            return restyle(image_tensor, mask_tensor, self.spacing_mm, self.config.restyle, self.generator).numpy()

        return UnifiedVolume.of_target(
            model=self.model,
            scan=scan,
            mask=mask,
            sequence=self.label,
            settings=self.config.harmonize,
            styled=styled,
            rng=self.noise_rng,
        )

    def of_sources(self, rows: Sequence[Row]) -> list[UnifiedVolume]:
        """Volumes of other sites."""
        volumes = []
        for row in rows:
            scan, mask = self.store.read(row)
            volumes.append(UnifiedVolume.of_source(self.model, scan, mask, self.label, self.config.harmonize))
        return volumes

    def draw(
        self, site_volumes: list[UnifiedVolume], source_volumes: list[UnifiedVolume], key: int
    ) -> tuple[TargetBatch, TargetBatch]:
        """Two slab groups of the site and one of the sources; the key alone determines which."""
        rng = np.random.default_rng([self.config.target.seed, key])
        first, second = rng.integers(len(site_volumes), size=2)
        seeds = rng.integers(2**31, size=3).tolist()
        other = rng.integers(len(source_volumes))
        first_group = self._group(site_volumes[first], seeds[0])
        second_group = self._group(site_volumes[second], seeds[1])
        other_group = self._group(source_volumes[other], seeds[2])
        return batch_of([first_group, second_group]), batch_of([other_group])

    def _group(self, volume: UnifiedVolume, seed: int) -> dict[str, np.ndarray]:
        return volume.group(self.label, self.config.target, seed)
