"""Inference that goes on where memory runs out: in smaller batches, then on the CPU."""

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
        Its settings keep the batches that fit, for later images.
    device:
        Where the model belongs: by default where it is.
    """

    def __init__(self, harmonizer: Harmonizer, device: torch.device | None = None) -> None:
        self.harmonizer = harmonizer
        self.model = harmonizer.bundle.model
        self.device = device or device_of(self.model)

    def infer(self, ready: ReadyScan, image_id: str, targets: Sequence[Target | None]) -> list[InferredImage]:
        """As :meth:`.Harmonizer.infer`; where memory runs out, with half the batch again and again, then on the CPU.

        The next image goes back to the device where that has room for the model again.

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
        """The model to its own device, if an image before sent it to the CPU; where there is no room yet it stays whole on the CPU."""
        if device_of(self.model) == self.device:
            return
        try:
            self.model.to(self.device)
        except (RuntimeError, MemoryError) as error:
            self.model.to("cpu")
            log.warning("the model stays on the CPU: %s", error)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no room; torch has no class of its own for the latter."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return "DefaultCPUAllocator" in message or "not enough memory" in message
