"""Trains stage 1 in one worker: steps, moving average of the weights, validation, state. Independent of Ray."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmh_ray.config import TrainConfig
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.optimiser import Muon
from mmh_ray.training import learning_rate_share, update_average


class Trainer:
    """Trains a model; ``wrapped`` is the model itself or its data-parallel wrapper.

    The complete state is a flat dict of tensors: checkpoints need no pickle, and a resumed run equals an uninterrupted
    one.
    """

    def __init__(self, model: GlobalHarmonizer, config: TrainConfig, wrapped: nn.Module | None = None) -> None:
        self.model = model
        self.wrapped = wrapped or model
        self.config = config
        self.device = next(model.parameters()).device
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.best_loss = math.inf
        self.steps_done = 0
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            (hidden if _is_hidden(name, weight) else rest).append(weight)
        self.optimizers = (
            Muon(hidden, config.matrix_learning_rate, config.weight_decay),
            torch.optim.AdamW(rest, config.learning_rate, weight_decay=config.weight_decay),
        )

    def step(self, batch: SlabBatch) -> dict[str, float]:
        """One optimiser step on this worker's groups; returns losses, learning rate and gradient norm."""
        share = learning_rate_share(self.steps_done, self.config.steps, self.config.warmup_steps)
        muon, adam = self.optimizers
        muon.param_groups[0]["lr"] = share * self.config.matrix_learning_rate
        adam.param_groups[0]["lr"] = share * self.config.learning_rate
        self.wrapped.train()
        ramp_steps = max(1.0, 0.2 * self.config.steps)
        style_ramp = min(1.0, self.steps_done / ramp_steps)
        in_half_precision = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_half_precision):
            losses = self.wrapped(batch.to(self.device), style_ramp)
        self.model.zero_grad(set_to_none=True)
        losses["loss"].backward()
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps_done += 1
        update_average(self.average, self.model, self.steps_done, self.config.ema_decay)
        figures = _over_workers(losses)
        figures["learning_rate"] = adam.param_groups[0]["lr"]
        figures["gradient_norm"] = float(gradient_norm)
        return figures

    @torch.no_grad()
    def validate(self, batches: Sequence[SlabBatch]) -> dict[str, float]:
        """Mean losses of the averaged weights; keeps the weights with the lowest loss.

        Noise and timesteps are the same at every validation, as the slabs' keys decide them.
        """
        means: dict[str, float] = {}
        for batch in batches:
            losses = self.average(batch.to(self.device))
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + float(loss) / len(batches)
        if means["loss"] < self.best_loss:
            self.best_loss = means["loss"]
            self.best.load_state_dict(self.average.state_dict())
        return {f"val_{name}": mean for name, mean in means.items()}

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs."""
        tensors = {
            "steps_done": torch.tensor(self.steps_done),
            "best_loss": torch.tensor(self.best_loss, dtype=torch.float64),
        }
        for part, model in self._models().items():
            for name, value in model.state_dict().items():
                tensors[f"{part}/{name}"] = value
        for number, optimizer in enumerate(self.optimizers):
            moments_of_weights = optimizer.state_dict()["state"]
            for index, moments in moments_of_weights.items():
                for name, value in moments.items():
                    tensors[f"optimizer/{number}/{index}/{name}"] = value
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self.steps_done = int(tensors["steps_done"])
        self.best_loss = float(tensors["best_loss"])
        for part, model in self._models().items():
            model.load_state_dict(_below(tensors, f"{part}/"))
        for number, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(tensors, f"optimizer/{number}/").items():
                index, _, key = name.partition("/")
                of_weight = moments.setdefault(int(index), {})
                of_weight[key] = value
            param_groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": param_groups})

    def _models(self) -> dict[str, GlobalHarmonizer]:
        """The three models of the state, by the prefix of their tensors' names."""
        return {"model": self.model, "average": self.average, "best": self.best}


def _over_workers(losses: dict[str, Tensor]) -> dict[str, float]:
    """Mean losses over all workers."""
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    means = values.tolist()
    return dict(zip(losses, means, strict=True))


def _is_hidden(name: str, weight: nn.Parameter) -> bool:
    """Whether a weight is a matrix or convolution of the U-Net, except its first and last convolution."""
    is_in_unet = "unet." in name
    is_matrix = weight.ndim > 1
    is_outermost = "conv_in." in name or "conv_out." in name
    return is_in_unet and is_matrix and not is_outermost


def best_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the model with the lowest validation loss, from a trainer's state."""
    return _below(tensors, "best/")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with a prefix in their names; the prefix is removed."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
