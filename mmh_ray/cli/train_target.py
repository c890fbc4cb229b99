"""`mmh train-target`."""

from __future__ import annotations

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, model_option
from mmh_ray.cli.running import DONE, show
from mmh_ray.config import Config


@click.command(
    "train-target",
    cls=Command,
    examples=["mmh train-target prepared --config configs/target.yaml target.site=alder"],
)
@click.argument("prepared", type=EXISTING)
@model_option
def train_target(config: Config, prepared: str, model: str) -> int:
    """Train and register an adapter for each target site.

    PREPARED are the shards made by `mmh prepare`. The sites are set by target.site=NAME.
    """
    from mmh_ray.distributed.train_target import train_targets

    for target in train_targets(prepared, model, config):
        show(f"target {target.site}: bundle {target.bundle}, model {target.model_uri}")
    return DONE
