"""Lists the commands of `mmh`. A new command needs its own file and a line here."""

from __future__ import annotations

import click

from mmh_ray import __version__
from mmh_ray.cli.command_line import Application
from mmh_ray.cli.demo import demo
from mmh_ray.cli.doctor import doctor
from mmh_ray.cli.evaluate import evaluate
from mmh_ray.cli.harmonize import harmonize
from mmh_ray.cli.manifest import manifest
from mmh_ray.cli.options import HELP_FLAGS, verbose_option
from mmh_ray.cli.phantom import phantom
from mmh_ray.cli.prepare import prepare
from mmh_ray.cli.promote import promote
from mmh_ray.cli.status import status
from mmh_ray.cli.train_global import train_global
from mmh_ray.cli.train_target import train_target

COMMANDS = (
    phantom,
    manifest,
    prepare,
    train_global,
    train_target,
    harmonize,
    status,
    evaluate,
    promote,
    demo,
    doctor,
)
"""Commands in the order of `mmh --help`, which follows the data through the pipeline."""

EPILOG = """\
\b
Examples:
  mmh harmonize sub-01_T1w.nii.gz out.nii.gz     one scan
  mmh harmonize BIDS OUT                         a whole archive
  mmh harmonize --help                           the options of a command

\b
Completion by the Tab key, in ~/.bashrc (zsh: zsh_source, in ~/.zshrc):
  eval "$(_MMH_COMPLETE=bash_source mmh)"
"""


@click.group(
    cls=Application,
    commands=list(COMMANDS),
    epilog=EPILOG,
    context_settings=HELP_FLAGS,
)
@click.version_option(__version__, message="mmh-ray %(version)s")
@verbose_option
def application(**_: object) -> None:
    """Takes the scanner out of multi-site brain MRI and leaves the person in."""
