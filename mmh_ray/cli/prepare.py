"""`mmh prepare`."""

from __future__ import annotations

import logging

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, PLACE
from mmh_ray.cli.running import DONE, FAILED
from mmh_ray.config import Config

log = logging.getLogger(__name__)


@click.command(
    "prepare",
    cls=Command,
    examples=[
        "mmh prepare manifest.parquet prepared",
        "mmh prepare manifest.parquet s3://bucket/prepared grid.spacing_mm=2",
    ],
)
@click.argument("manifest", type=EXISTING)
@click.argument("out", type=PLACE)
def prepare(config: Config, manifest: str, out: str) -> int:
    """Bring the images of a manifest to the working grid.

    MANIFEST is the table made by `mmh manifest`, OUT a folder or URI for the Parquet shards.
    """
    from mmh_ray.distributed.prepare import prepare as prepare_images

    outcome = prepare_images(manifest, out, config)
    if not outcome.failed:
        return DONE
    log.warning("%d images could not be prepared", outcome.failed)
    return FAILED
