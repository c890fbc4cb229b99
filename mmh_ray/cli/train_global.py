"""`mmh train-global`."""

from __future__ import annotations

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING
from mmh_ray.cli.running import DONE, results
from mmh_ray.config import Config


@click.command(
    "train-global",
    cls=Command,
    examples=["mmh train-global prepared --config configs/demo.yaml", "mmh train-global --config configs/base.yaml"],
)
@click.argument("prepared", type=EXISTING, required=False)
def train_global(config: Config, prepared: str | None) -> int:
    """Train and register the global harmonizer.

    PREPARED are the shards made by `mmh prepare`. Without them the model learns from simulation alone.
    """
    from mmh_ray.distributed.train import train_global as train

    model = train(prepared, config)
    print(f"bundle {model.bundle}", file=results())
    print(f"model {model.model_uri}", file=results())
    return DONE
