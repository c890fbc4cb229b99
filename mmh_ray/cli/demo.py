"""`mmh demo`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.running import DONE, INTERRUPTED
from mmh_ray.config import Config


@click.command(
    "demo",
    cls=Command,
    examples=["mmh demo --config configs/demo.yaml", "mmh demo somewhere/else --config configs/demo.yaml"],
)
@click.argument("out", default="demo")
def demo(config: Config, out: str) -> int:
    """Run the whole pipeline here, phantom to evaluation.

    OUT is a folder for everything; the default is `demo`.
    """
    from mmh_ray.demo import run

    run(out, config, _run_command)
    return DONE


def _run_command(line: Sequence[str]) -> int:
    """Run another command of `mmh` in this process."""
    from mmh_ray.cli import main  # not at the top: that module imports this one

    code = main(line)
    if code == INTERRUPTED:
        raise KeyboardInterrupt(f"mmh {line[0]} was interrupted")
    return code
