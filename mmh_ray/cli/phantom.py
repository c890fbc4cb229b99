"""`mmh phantom`."""

from __future__ import annotations

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import setting_option
from mmh_ray.cli.running import DONE
from mmh_ray.config import Config


@click.command(
    "phantom",
    cls=Command,
    examples=["mmh phantom bids", "mmh phantom bids --sites 2 --travelers 3 --spacing 2"],
)
@click.argument("out")
@setting_option("--sites", "phantom.sites", metavar="N", help="Scanners to simulate.")
@setting_option(
    "--subjects-per-site", "phantom.subjects_per_site", metavar="N", help="Subjects scanned at one site only."
)
@setting_option("--travelers", "phantom.travelers", metavar="N", help="Subjects scanned at every site.")
@setting_option("--spacing", "phantom.spacing_mm", metavar="MM", help="Isotropic voxel edge in mm.")
@setting_option("--lesions", "phantom.lesions", metavar="SHARE", help="Share of subjects with lesions, 0-1.")
@setting_option("--seed", "phantom.seed", metavar="N", help="Same seed, same bytes.")
def phantom(config: Config, out: str) -> int:
    """Simulate a multi-site BIDS archive with known truth.

    OUT is the folder for the archive.
    """
    from mmh_ray.distributed.phantom import make_archive

    make_archive(out, config.phantom)
    return DONE
