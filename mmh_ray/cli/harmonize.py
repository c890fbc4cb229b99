"""`mmh harmonize`: harmonizes an archive or one scan."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import EXISTING, PLACE, json_option, list_option, model_option, setting_option
from mmh_ray.cli.running import DONE, FAILED, counts_as_text, show
from mmh_ray.cli.status import write_report
from mmh_ray.config import Config
from mmh_ray.errors import ConfigError

if TYPE_CHECKING:
    from mmh_ray.harmonization.job import Job

log = logging.getLogger(__name__)


@click.command(
    "harmonize",
    cls=Command,
    examples=[
        "mmh harmonize BIDS OUT --participant-label 01 02 --sequence T1w",
        "mmh harmonize s3://bucket/bids s3://bucket/harmonized",
        "mmh harmonize sub-01_T1w.nii.gz harmonized.nii.gz",
    ],
)
@click.argument("bids", type=EXISTING)
@click.argument("out", type=PLACE)
@click.argument("level", type=click.Choice(["participant", "group"]), required=False)
@model_option
@list_option("--participant-label", help="Only these subjects, with or without `sub-`.")
@list_option("--session-label", help="Only these sessions, with or without `ses-`.")
@list_option("--sequence", help="Only these sequences (BIDS suffixes); for one scan: its sequence.")
@click.option(
    "--bids-filter-file", type=EXISTING, metavar="FILE.json", help='Only these entities: {"t1w": {"run": 1}}.'
)
@list_option("--target", help="Sites, target bundles or registered models to harmonize to.")
@click.option(
    "--target-image",
    type=EXISTING,
    metavar="FILE.nii.gz",
    help="Scan with a BIDS name; the images are harmonized to it.",
)
@click.option("--mask", type=EXISTING, metavar="FILE.nii.gz", help="Brain mask of one scan.")
@setting_option("--space", "harmonize.space", help="Grid: the scan's own or ICBM-152's.")
@setting_option("--intensity", "harmonize.intensity", help="Range: about 0-1, or the scan's own.")
@setting_option("--detail", "harmonize.detail", help="Detail from the scan, or the model alone.")
@setting_option("--skull", "prepare.skull", help="Keep or remove everything outside the brain.")
@setting_option("--n-procs", "harmonize.slots", metavar="N", help="Workers; 0: one per GPU, or per two CPUs.")
@setting_option(
    "--mem-gb", "harmonize.memory_gb", metavar="GB", help="Memory limit for each machine; reduces the images at a time."
)
@click.option("--retry-failed", is_flag=True, help="Only images that failed or were refused before.")
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@json_option
def harmonize(
    config: Config,
    *,
    bids: str,
    out: str,
    level: str | None,
    model: str,
    participant_label: tuple[str, ...],
    session_label: tuple[str, ...],
    sequence: tuple[str, ...],
    bids_filter_file: str | None,
    target: tuple[str, ...],
    target_image: str | None,
    mask: str | None,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Harmonize a BIDS archive, or one scan.

    OUT is a folder for the derivatives, the ledger and the report. Each may be the URI of a folder in an object store
    (s3://, gs://). If BIDS is one scan, NAME.nii.gz, OUT is a file.
    Level `participant` (the default) harmonizes images; level `group` only writes the report again.
    """
    if level == "group":
        return write_report(out)
    from mmh_ray.bids.filters import NO_FILTERS, read_filters
    from mmh_ray.harmonization.job import Job

    job = Job(
        bids=bids,
        out=out,
        model=model,
        config=config,
        participants=tuple(label.removeprefix("sub-") for label in participant_label),
        sessions=tuple(label.removeprefix("ses-") for label in session_label),
        sequences=sequence,
        retry_failed=retry_failed,
        targets=target,
        target_image=target_image,
        filters=read_filters(bids_filter_file) if bids_filter_file else NO_FILTERS,
    )
    if os.path.isfile(bids):
        _check_one_scan(job, dry_run)
        return _harmonize_scan(job, mask, as_json)
    if mask:
        raise ConfigError("--mask with an archive", "a mask of one scan", "Put masks beside the scans, as BIDS has it.")
    return _show_plan(job, as_json) if dry_run else _harmonize_archive(job, as_json)


def _check_one_scan(job: Job, dry_run: bool) -> None:
    """Refuse options that need an archive."""
    only_for_archives = {
        "--participant-label": job.participants,
        "--session-label": job.sessions,
        "--bids-filter-file": job.filters.queries,
        "--target": job.targets,
        "--target-image": job.target_image,
        "--retry-failed": job.retry_failed,
        "--dry-run": dry_run,
    }
    unusable = [flag for flag, value in only_for_archives.items() if value]
    if len(job.sequences) > 1:
        unusable.append("--sequence with several")
    if unusable:
        received = f"{', '.join(unusable)} for one scan, {job.bids}"
        raise ConfigError(received, "a BIDS archive for it", "Leave it out, or give the archive.")


def _harmonize_scan(job: Job, mask: str | None, as_json: bool) -> int:
    """Harmonize one file in this process."""
    from mmh_ray.harmonization.memory import check_scan_size
    from mmh_ray.harmonization.one_scan import harmonize_file, load

    log.info("harmonizing %s", job.bids)  # nothing else is logged for a while
    check_scan_size(job.bids, job.config.harmonize.memory_gb)
    sequence = job.sequences[0] if job.sequences else None
    with ThreadPoolExecutor(max_workers=1) as background:  # the model is loaded while the scan is prepared
        model = load(job.model, job.config, background)
        flags = harmonize_file(job.bids, job.out, model, sequence, mask)
    for flag in flags:
        log.warning("look at it: %s", flag)
    log.info("wrote %s, and beside it a .json that says what was done", job.out)
    if as_json:
        show({"output": job.out, "flags": flags})
    return DONE


def _show_plan(job: Job, as_json: bool) -> int:
    """Print a line for each image on stdout, and the counts on stderr."""
    from mmh_ray.distributed.harmonize import plan

    rows = plan(job)
    if as_json:
        show(rows)
    else:
        for row in rows:
            fields = (row["action"], row["image_id"], row["reason"])
            show("\t".join(field for field in fields if field))
    actions = Counter(row["action"] for row in rows)
    log.info("would %s; nothing was written", counts_as_text(actions))
    return FAILED if actions["fail"] or actions["refuse"] else DONE


def _harmonize_archive(job: Job, as_json: bool) -> int:
    """Run the batch job, and print its summary on stdout."""
    from mmh_ray.bids.status import utc_now
    from mmh_ray.cli.harmonize_summary import summary_of
    from mmh_ray.distributed.harmonize import harmonize as harmonize_archive

    started = utc_now()
    counts = harmonize_archive(job)
    summary = summary_of(job.out, counts, started)
    show(dataclasses.asdict(summary) if as_json else summary.as_text())
    return FAILED if summary.without_result else DONE
