"""`mmh evaluate`."""

from __future__ import annotations

from typing import Any

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, PLACE, truth_option
from mmh_ray.cli.running import DONE, TABLE_WIDTH, results
from mmh_ray.config import Config
from mmh_ray.errors import ConfigError
from mmh_ray.staging import uploaded


class Archive(click.ParamType):
    """Parses NAME=FOLDER."""

    name = "NAME=FOLDER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The name and the folder, which must exist unless it is a URI."""
        name, equals, folder = value.partition("=")
        if not equals:
            self.fail(f"{value}: no name; give NAME=FOLDER, for example raw=/data/bids", param, ctx)
        return name, EXISTING.convert(folder, param, ctx)


@click.command(
    "evaluate",
    cls=Command,
    examples=[
        "mmh evaluate --archive raw=BIDS --archive ours=OUT --out evaluation",
        "mmh evaluate --archive raw=s3://bucket/bids --archive ours=s3://bucket/out --out s3://bucket/evaluation",
        "mmh evaluate --archive raw=BIDS --archive ours=OUT --archive haca3=DIR --out evaluation",
        "mmh evaluate --target alder --archive raw=BIDS --archive ours=OUT_ALDER --archive global=OUT --out evaluation",
    ],
)
@click.option(
    "--archive",
    "archives",
    type=Archive(),
    multiple=True,
    required=True,
    metavar="NAME=FOLDER",
    help="raw=BIDS, the scans (or their manifest); ours=OUT, made by `mmh harmonize`; ours_twice=OUT2, OUT harmonized "
    "again; any other name is a method to compare with, a folder of volumes with BIDS names.",
)
@click.option(
    "--out",
    type=PLACE,
    required=True,
    metavar="FOLDER",
    help="Folder for evaluation.json, per_image.parquet, report.html and figures.",
)
@click.option(
    "--target",
    metavar="SITE",
    help="Site that ours was harmonized to: people scanned there and elsewhere are compared with their scans there.",
)
@truth_option
@click.option(
    "--labels",
    type=EXISTING,
    metavar="FOLDER",
    help="Label maps *_dseg.nii.gz with BIDS names; without it, those in raw's derivatives.",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Registered model that made `ours` (models:/NAME@ALIAS or models:/NAME/VERSION): keep the figures with it.",
)
def evaluate(
    config: Config,
    archives: tuple[tuple[str, str], ...],
    out: str,
    target: str | None,
    truth: str | None,
    labels: str | None,
    model: str | None,
) -> int:
    """Compare scans, baselines and the outputs of any methods."""
    from rich.console import Console

    from mmh_ray.distributed.evaluate import evaluate as evaluate_archives
    from mmh_ray.evaluation.report.table import as_table
    from mmh_ray.evaluation.statistics.summary import by_sequence

    folders = dict(archives)
    if len(folders) < len(archives):
        raise ConfigError("two archives of one name", "a different name for each", "Rename one of them.")
    if model and target:
        remedy = "Leave one of them out: promotion compares figures that are measured without a target."
        raise ConfigError("--model and --target", "one of the two", remedy)
    checked_model = None
    if model:
        from mmh_ray.tracking.promotion import check_model, keep_with_model

        checked_model = check_model(model, folders, config)
    console = Console(file=results(), width=None if results().isatty() else TABLE_WIDTH)
    with uploaded(out) as folder:
        evaluation = evaluate_archives(folders, folder, config, truth, checked_model, labels, target)
        console.print(as_table(by_sequence(evaluation)))
        scores_on_labels = evaluation["about"].get("labels")
        if scores_on_labels:
            from mmh_ray.evaluation.report.labels_table import labels_table

            console.print(labels_table(scores_on_labels))
        if checked_model:
            from mmh_ray.distributed.job_facts import note_in_job, ray_facts

            run_id = keep_with_model(checked_model, folder, config, ray_facts())
            note_in_job({"mlflow_run_id": run_id})
    return DONE
