"""diffusers without what our networks do not need, and all of it afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

AFTERWARDS = """
import sys
import torch
from mmh_ray.diffusers_import import import_diffusers
found = import_diffusers()
network = found.UNet2DModel(block_out_channels=(8,), down_block_types=("DownBlock2D",),
                            up_block_types=("UpBlock2D",), norm_num_groups=4)
not_needed = {"accelerate", "peft", "transformers", "torch._dynamo", "diffusers.models.unets.unet_1d"}
assert not not_needed & sys.modules.keys(), not_needed & sys.modules.keys()

import diffusers.models.unets
assert diffusers.models.unets.UNet2DModel is diffusers.UNet2DModel is found.UNet2DModel
assert import_diffusers() == found
assert diffusers.DDIMScheduler is found.DDIMScheduler
assert issubclass(diffusers.UNet2DConditionModel, torch.nn.Module)

import peft
layers = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["conv1"]), network)
assert any("lora" in name for name, _ in layers.named_parameters())
optimizer = torch.optim.AdamW(network.parameters())  # imports torch._dynamo
network(torch.zeros(1, 3, 16, 16), 1).sample.sum().backward()
optimizer.step()
"""

OTHER_VERSION = """
import sys

class Moved:
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers.models.unets.unet_2d":
            sys.meta_path.remove(self)
            raise ERROR(name)

sys.meta_path.insert(0, Moved())
from mmh_ray.diffusers_import import import_diffusers
found = import_diffusers()
import diffusers
assert found is diffusers
assert (found.UNet2DModel, found.DDIMScheduler) == (diffusers.UNet2DModel, diffusers.DDIMScheduler)
"""


@pytest.mark.slow
def test_what_is_not_needed_is_not_imported_and_can_be_afterwards() -> None:
    run(AFTERWARDS)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ModuleNotFoundError", "RuntimeError"])
def test_a_version_with_other_modules_is_imported_as_a_whole(error: str) -> None:
    run(OTHER_VERSION.replace("ERROR", error))


def run(code: str) -> None:
    """Run code in a process of its own, which must succeed."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
