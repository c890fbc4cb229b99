"""Inference that continues if memory runs out: in smaller batches, then on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from mmh_ray.harmonization.harmonizer import Harmonizer, InferredImage, ReadyScan, with_smaller_batches
from mmh_ray.models.target.bundle import Target

log = logging.getLogger(__name__)


class FallbackInference:
    """Infers images one after the other.

    Parameters
    ----------
    harmonizer:
        Its settings are changed to batches that fit, also for later images.
    device:
        The model's device; by default the one that it is on.
    """

    def __init__(self, harmonizer: Harmonizer, device: torch.device | None = None) -> None:
        self.harmonizer = harmonizer
        self.model = harmonizer.bundle.model
        self.device = device or device_of(self.model)

    def infer(self, ready: ReadyScan, image_id: str, targets: Sequence[Target | None]) -> list[InferredImage]:
        """As :meth:`.Harmonizer.infer`; if memory runs out, halve the batch until it fits, then use the CPU.

        For the next image the model returns to its device if there is room again.

        Raises
        ------
        MemoryError
            If not even one slab at a time fits on the CPU.
        """
        harmonizer = self.harmonizer
        self._move_back()
        while True:
            try:
                return harmonizer.infer(ready, targets)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if harmonizer.settings.batch_slabs > 1:
                    harmonizer.settings = with_smaller_batches(harmonizer.settings)
                elif device_of(self.model).type != "cpu":
                    self.model.to("cpu")
                else:
                    raise MemoryError(f"not even one slab at a time fits on the CPU: {error}") from error
            torch.cuda.empty_cache()
            slabs = harmonizer.settings.batch_slabs
            device = device_of(self.model)
            log.warning("%s: out of memory; from now on %d slabs a batch, this image on %s", image_id, slabs, device)

    def _move_back(self) -> None:
        """Move the model back to its device, if an earlier image moved it to the CPU; without room it stays there."""
        if device_of(self.model) == self.device:
            return
        try:
            self.model.to(self.device)
        except (RuntimeError, MemoryError) as error:
            self.model.to("cpu")
            log.warning("the model stays on the CPU: %s", error)


def device_of(model: torch.nn.Module) -> torch.device:
    """Device of a model's weights."""
    return next(model.parameters()).device


def _is_out_of_memory(error: Exception) -> bool:
    """Whether device or host memory ran out; torch has no exception class for host memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return "DefaultCPUAllocator" in message or "not enough memory" in message
