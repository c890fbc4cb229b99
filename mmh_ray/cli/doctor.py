"""`mmh doctor`."""

from __future__ import annotations

import click

from mmh_ray.cli.command_line import Command
from mmh_ray.cli.options import json_option
from mmh_ray.cli.running import DONE, FAILED, show
from mmh_ray.config import Config


@click.command("doctor", cls=Command, examples=["mmh doctor", "mmh doctor --json"])
@json_option
def doctor(config: Config, as_json: bool) -> int:
    """Check this machine: versions, GPU, Ray, disk, MLflow."""
    from mmh_ray import doctor as examination

    findings = []
    for finding in examination.examine(config.tracking):
        findings.append(finding)
        if not as_json:
            show(finding.as_line())
    show(examination.as_json(findings) if as_json else examination.verdict(findings))
    return DONE if examination.is_healthy(findings) else FAILED
