"""`mmh train-global`."""

from __future__ import annotations

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING
from mmh_ray.cli.running import DONE, show
from mmh_ray.config import Config


@click.command(
    "train-global",
    cls=Command,
    examples=["mmh train-global prepared --config configs/demo.yaml", "mmh train-global --config configs/base.yaml"],
)
@click.argument("prepared", type=EXISTING, required=False)
def train_global(config: Config, prepared: str | None) -> int:
    """Train and register the global harmonizer.

    PREPARED are the shards made by `mmh prepare`. Without them the model is trained only on simulated data.
    """
    from mmh_ray.distributed.train import train_global as train

    model = train(prepared, config)
    show(f"bundle {model.bundle}")
    show(f"model {model.model_uri}")
    return DONE
