"""diffusers without what only its pipelines need, and these packages afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from mmh_ray.diffusers_import import import_diffusers
network = import_diffusers().UNet2DModel(block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                         up_block_types=("UpBlock2D",), norm_num_groups=4)
assert not {"accelerate", "peft", "transformers"} & sys.modules.keys()
import peft
layers = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["conv1"]), network)
assert any("lora" in name for name, _ in layers.named_parameters())
assert import_diffusers().UNet2DModel is type(network)
"""


@pytest.mark.slow
def test_hidden_packages_are_not_imported_and_can_be_afterwards() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
