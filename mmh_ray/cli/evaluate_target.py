"""`mmh evaluate-target`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, truth_option
from mmh_ray.cli.running import DONE, TABLE_WIDTH
from mmh_ray.config import Config


@click.command(
    "evaluate-target",
    cls=Command,
    examples=["mmh evaluate-target manifest.parquet alder OUT OUT_ALDER target.json"],
)
@click.argument("manifest", type=EXISTING)
@click.argument("site")
@click.argument("unified", metavar="GLOBAL", type=EXISTING)
@click.argument("moved", type=EXISTING)
@click.argument("out", metavar="OUT.json")
@click.option(
    "--target",
    metavar="NAME",
    help="Name of the target, if it is not SITE: of a --target-image its file name without .nii.gz.",
)
@truth_option
def evaluate_target(
    config: Config, manifest: str, site: str, unified: str, moved: str, out: str, target: str | None, truth: str | None
) -> int:
    """Measure how near scans of other sites come to a site.

    The subjects are those of the MANIFEST who were scanned at SITE and elsewhere. GLOBAL are derivatives that `mmh harmonize`
    made without a target, MOVED those with --target or --target-image.
    """
    from rich.console import Console

    from mmh_ray.distributed.evaluate_target import MAIN_METRICS
    from mmh_ray.distributed.evaluate_target import evaluate_target as evaluate
    from mmh_ray.evaluation.report.table import as_table
    from mmh_ray.evaluation.target_metrics import METHODS, SHOWN
    from mmh_ray.provenance import write_json

    results = evaluate(manifest, site, unified, moved, config, truth, METHODS, target)
    write_json(Path(out), results)
    shown = {}
    for sequence, methods in results.items():
        shown[sequence] = {SHOWN[method]: scores for method, scores in methods.items()}
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(as_table(shown, (*MAIN_METRICS, "truth_nrmse")))
    return DONE
