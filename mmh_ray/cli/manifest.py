"""`mmh manifest`."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, PLACE
from mmh_ray.cli.running import DONE, counts_as_text
from mmh_ray.config import Config
from mmh_ray.object_store import loggable_uri

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

REASONS_SHOWN = 10


@click.command(
    "manifest",
    cls=Command,
    examples=[
        "mmh manifest bids manifest.parquet manifest.test_fraction=0.2",
        "mmh manifest s3://bucket/bids s3://bucket/manifest.parquet",
    ],
)
@click.argument("bids", type=EXISTING)
@click.argument("out", type=PLACE, metavar="OUT.parquet")
def manifest(config: Config, bids: str, out: str) -> int:
    """List the images of a BIDS archive in a Parquet table.

    BIDS is a folder or the URI of one in an object store (s3://, gs://), OUT.parquet a path or URI.
    """
    from mmh_ray.distributed.manifest import build_manifest

    _log_statuses(build_manifest(bids, out, config))
    log.info("wrote %s", loggable_uri(out))
    return DONE


def _log_statuses(manifest: pyarrow.Table) -> None:
    """Log how many images can be used, and why the others cannot."""
    from mmh_ray.bids.status import count_reasons

    counts = Counter(manifest["status"].to_pylist())
    log.info("%d images: %s", manifest.num_rows, counts_as_text(counts))
    rows = manifest.select(["uri", "reason"]).to_pylist()
    reasons = list(count_reasons(rows).items())
    for reason, count in reasons[:REASONS_SHOWN]:
        log.warning("%d x %s", count, reason)
    if len(reasons) > REASONS_SHOWN:
        log.warning("and %d more reasons: see the column `reason`", len(reasons) - REASONS_SHOWN)
