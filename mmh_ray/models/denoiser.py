"""The denoiser: a diffusers U-Net that gets the anatomy (condition) and the context of each slab.

Shapes: ``B`` slabs, ``K`` slices of a slab, ``C`` condition channels, ``H W`` a padded slice.

diffusers takes seconds to import, so it is imported only where a model is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmh_ray.config import ModelConfig
from mmh_ray.diffusers_import import import_diffusers
from mmh_ray.models import conditioning


@dataclass
class Context:
    """Facts about each slab besides its voxels; each field has length ``B``."""

    sequence: Tensor
    """``(B,)`` long, index into ``ModelConfig.sequences``."""
    plane: Tensor
    """``(B,)`` long, index into ``imaging.slices.PLANES``."""
    position: Tensor
    """``(B,)`` float, from 0 (first slice) to 1 (last slice)."""
    domain: Tensor
    """``(B, 2)`` float, mean and standard deviation of the sequence's unified domain in unit intensity."""


NOISE_GAIN = 0.2
CONDITION_GAIN = 4.0
"""Scale of the network's inputs. The scan's own noise and faint contrasts are small in the condition, and must not be
lost in the diffusion noise."""


class Denoiser(nn.Module):
    """Predicts the clean slab x0 from a noisy one; the context scales and shifts every residual block (FiLM)."""

    def __init__(self, config: ModelConfig) -> None:
        diffusers = import_diffusers()
        super().__init__()
        self.patch = config.patch
        self.slab = config.slab
        area = config.patch**2
        width = 4 * config.channels[0]
        condition = conditioning.channels(config.distances) + config.slab  # differences, then matched intensities
        outer_levels = len(config.channels) - 1
        deepest = "Attn" if config.attention else ""
        unet: Any = diffusers.UNet2DModel(
            in_channels=(config.slab + condition) * area,
            out_channels=config.slab * area,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D",) * outer_levels + (f"{deepest}DownBlock2D",),
            up_block_types=(f"{deepest}UpBlock2D",) + ("UpBlock2D",) * outer_levels,
            add_attention=config.attention,
            norm_num_groups=8,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        self.unet = unet
        self.sequence = nn.Embedding(len(config.sequences), width)
        self.plane = nn.Embedding(3, width)
        self.scalars = nn.Sequential(
            nn.Linear(7, width),  # position, its four waves, mean and standard deviation of the domain
            nn.SiLU(),
            nn.Linear(width, width),
        )

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor, context: Context) -> Tensor:
        """Predict x0 ``(B, K, H, W)`` in diffusion intensity (-1 is background).

        Inputs are ``noisy`` ``(B, K, H, W)``, ``timestep`` ``(B,)`` and ``condition`` ``(B, C, H, W)``; ``H`` and ``W``
        must be multiples of ``patch * 2**(levels - 1)``. The U-Net predicts what to add to the histogram-matched slab,
        averaged over all slices and 3 x 3 pixels. The matched slab is the last ``K`` channels of the condition.
        """
        scaled_noisy = NOISE_GAIN * noisy
        scaled_condition = CONDITION_GAIN * condition
        inputs = torch.cat([scaled_noisy, scaled_condition], dim=1)
        folded = F.pixel_unshuffle(inputs, self.patch)
        embedding = self.embed(context)
        predicted = self.unet(folded, timestep, class_labels=embedding).sample
        matched_slab = condition[:, -self.slab :]
        matched = matched_slab.mean(1, keepdim=True)
        smooth = F.avg_pool2d(matched, 3, stride=1, padding=1)
        addition = F.pixel_shuffle(predicted, self.patch)
        return to_diffusion(smooth) + addition

    def embed(self, context: Context) -> Tensor:
        """Sum of the embeddings of the context, ``(B, width)``."""
        position = [context.position]
        for frequency in (1, 2):
            angle = context.position * torch.pi * frequency
            position.append(torch.sin(angle))
            position.append(torch.cos(angle))
        waves = torch.stack(position, dim=1)
        scalars = torch.cat([waves, context.domain], dim=1)
        of_sequence = self.sequence(context.sequence)
        of_plane = self.plane(context.plane)
        return of_sequence + of_plane + self.scalars(scalars)


def make_scheduler(config: ModelConfig) -> Any:
    """Make a ``diffusers.DDIMScheduler`` for training and sampling; the network predicts x0.

    Its scaled-linear betas are rescaled to zero terminal SNR (Lin et al., WACV 2024), so that the last training
    timestep is pure noise, where sampling starts.
    """
    return import_diffusers().DDIMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def to_diffusion(unit: Tensor) -> Tensor:
    """Convert unit intensity (background 0, brain up to about 1) to diffusion intensity (-1 to about 1)."""
    return 2 * unit - 1


def to_unit(diffusion: Tensor) -> Tensor:
    """Inverse of :func:`to_diffusion`."""
    return (diffusion + 1) / 2
