"""`mmh promote`."""

from __future__ import annotations

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.running import DONE, FAILED, show
from mmh_ray.config import Config
from mmh_ray.errors import ConfigError


@click.command(
    "promote",
    cls=Command,
    examples=["mmh promote models:/mmh-global@candidate --if better-than champion"],
)
@click.argument("model")
@click.option(
    "--if",
    "condition",
    nargs=2,
    required=True,
    metavar="better-than ALIAS",
    help="MODEL gets this alias if it is better than the model that has it.",
)
def promote(config: Config, model: str, condition: tuple[str, str]) -> int:
    """Give a model another model's alias if its evaluation is better.

    MODEL is models:/NAME/VERSION or models:/NAME@ALIAS, and was evaluated by `mmh evaluate --model`.
    """
    word, alias = condition
    if word != "better-than":
        raise ConfigError(f"--if {word} {alias}", "better-than ALIAS", "Write --if better-than champion.")
    from mmh_ray.tracking.promotion import promote as promote_model

    decision = promote_model(model, alias, config)
    for line in decision.lines:
        show(line)
    show(decision.outcome)
    return DONE if decision.passed else FAILED
