"""The `mmh` command: read the command line, run one command, exit.

A file per command; each imports what is heavy only when it runs. `command_line` says how a line is read, `options` holds
what several commands share, `running` the logging and the exit codes. Click reads the line; the few habits that it does
not have (settings anywhere on the line, options with several values) are in `command_line`.
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
"""Objects made between two rounds of the garbage collector. With Python's 700 it goes through the hundred thousands of
objects that packages bring again and again: a quarter of the time that their import takes."""


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command as the whole of this process, and leave it with the exit code of :func:`main`.

    Stdout is the command's alone. Ray prints its notices there, and may do so until it has ended: it ends before.
    """
    gc.set_threshold(_ALLOCATIONS)
    invocation, overrides = parse(sys.argv[1:] if argv is None else argv)  # help and version go to stdout
    with stdout_for_results():
        code = _run(invocation, overrides)
        end_ray()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the command line of the process."""
    invocation, overrides = parse(sys.argv[1:] if argv is None else argv)
    return _run(invocation, overrides)


def _run(invocation: Invocation, overrides: list[str]) -> int:
    set_up_logging(invocation.verbose)
    with stoppable():
        try:
            config = load_config(invocation.config, overrides)
            return invocation.handler(config, **invocation.arguments)
        except MMHError as error:
            return explained(invocation.command, error)
        except (KeyboardInterrupt, SystemExit):
            # Ray's own signal handlers leave by SystemExit, some of them with code 0.
            print(f"mmh {invocation.command}: interrupted", file=sys.stderr)
            end_ray()
            return INTERRUPTED


def parse(argv: Sequence[str]) -> tuple[Invocation, list[str]]:
    """What a command line asks for, and its `section.key=value` overrides.

    Raises
    ------
    SystemExit
        With code 2, after the usage on stderr, if the line makes no sense; with code 0 after `--help` and `--version`.
    """
    try:
        outcome = application.main(list(argv), prog_name="mmh", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error
    if not isinstance(outcome, Invocation):  # the exit code of --help or --version
        raise SystemExit(outcome)
    return outcome, outcome.overrides
