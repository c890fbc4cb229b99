"""If the device runs out of memory, the CPU is used as a last resort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmh_ray.config import Config
from mmh_ray.harmonization import fallback
from mmh_ray.harmonization.fallback import FallbackInference
from mmh_ray.harmonization.harmonizer import Harmonizer
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.bundle import load_bundle

pytestmark = pytest.mark.fast


@pytest.mark.slow
def test_the_last_resort_is_the_cpu_and_the_next_image_tries_the_gpu_again(
    tiny_bundle: Path, tiny_config: Config, plain_scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a simulated device that is out of memory for every image.

    The model is moved to the CPU and back after each image; the first move back fails too.
    """
    harmonizer = Harmonizer(load_bundle(tiny_bundle), tiny_config.harmonize)
    inference = FallbackInference(harmonizer, torch.device("cuda"))
    device, moves, infer = ["cuda"], list[str](), Harmonizer.infer

    def to(model: torch.nn.Module, where: str | torch.device) -> torch.nn.Module:
        moves.append(str(where))
        if str(where) == "cuda" and moves.count("cuda") == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        device[0] = str(where)
        return model

    def hungry(self: Harmonizer, *arguments: Any) -> Any:
        if device[0] == "cuda":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
        return infer(self, *arguments)

    monkeypatch.setattr(fallback, "device_of", lambda model: torch.device(device[0]))
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(Harmonizer, "infer", hungry)
    ready = harmonizer.ready(plain_scan, "T1w", None)
    for expected in (["cpu"], ["cuda", "cpu"], ["cuda", "cpu"]):
        moves_before = len(moves)
        assert len(inference.infer(ready, "sub-01_T1w", [None])) == 1
        assert moves[moves_before:] == expected
    assert harmonizer.settings.batch_slabs == 1  # later images keep the smaller batch
