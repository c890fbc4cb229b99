"""Runs the `mmh` command: parse the command line, run one command, exit.

Each command has its own file and imports heavy packages only when it runs. Click parses the line; `command_line` adds
what Click does not support (settings anywhere on the line, options with several values). `options` has options that
several commands share, `running` has logging and exit codes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from mmh_ray.cli.application import application
from mmh_ray.cli.command_line import Invocation
from mmh_ray.cli.running import INTERRUPTED, end_ray, explained, set_up_logging, stdout_for_results
from mmh_ray.config import load_config
from mmh_ray.errors import MMHError
from mmh_ray.stopping import stoppable

_ALLOCATIONS = 100_000
"""New objects between two runs of the garbage collector. With Python's default of 700, it scans the hundreds of
thousands of objects of imported packages again and again, which takes a quarter of the import time."""


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command in this process, and exit with the exit code of :func:`main`.

    Only the command's results go to stdout. Ray prints notices there until it has ended, so it is ended first.
    """
    gc.set_threshold(_ALLOCATIONS)
    invocation = parse(sys.argv[1:] if argv is None else argv)  # help and version go to stdout
    with stdout_for_results():
        code = _run(invocation)
        end_ray()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the command line of the process."""
    invocation = parse(sys.argv[1:] if argv is None else argv)
    return _run(invocation)


def _run(invocation: Invocation) -> int:
    set_up_logging(invocation.verbose)
    with stoppable():
        try:
            config = load_config(invocation.config, invocation.overrides)
            return invocation.handler(config, **invocation.arguments)
        except MMHError as error:
            return explained(invocation.command, error)
        except (KeyboardInterrupt, SystemExit):
            # Ray's signal handlers raise SystemExit, some with code 0.
            print(f"mmh {invocation.command}: interrupted", file=sys.stderr)
            end_ray()
            return INTERRUPTED


def parse(argv: Sequence[str]) -> Invocation:
    """The command, arguments and settings of a command line.

    Raises
    ------
    SystemExit
        With code 2, after the usage on stderr, if the line is invalid; with code 0 after `--help` and `--version`.
    """
    try:
        outcome = application.main(list(argv), prog_name="mmh", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error
    if not isinstance(outcome, Invocation):  # the exit code of --help or --version
        raise SystemExit(outcome)
    return outcome
