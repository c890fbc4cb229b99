"""What an operator sees: names that the dashboard draws, and labels that stay few."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmh_ray.bids.rows import Problem
from mmh_ray.distributed import metrics
from mmh_ray.distributed.metrics import MOST_REASON, reason_label
from mmh_ray.errors import DataError

pytestmark = pytest.mark.fast

OURS = {
    metrics.IMAGES: ["_total"],
    metrics.SECONDS: ["_bucket", "_sum", "_count"],
    metrics.WAIT: ["_total"],
    metrics.QUEUE: [""],
}
"""Endings that Ray gives to the names of counters, histograms and gauges."""


def test_the_dashboard_draws_our_metrics_and_no_others(repository: Path) -> None:
    dashboard = json.loads((repository / "configs/cluster/grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    drawn = {name for text in expressions for name in re.findall(r"\bray_mmh_\w+", text)}
    known = {f"ray_{name}{end}" for name, ends in OURS.items() for end in ends}
    assert drawn <= known, drawn - known
    for name in OURS:
        assert any(found.startswith(f"ray_{name}") for found in drawn), f"{name} is drawn nowhere"


def test_the_dashboard_loads_into_any_grafana(repository: Path) -> None:
    dashboard = json.loads((repository / "configs/cluster/grafana.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", "no Grafana has another's data source"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
    chosen = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {name for panel in panels for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
    assert used <= chosen


def test_a_label_holds_the_kind_of_failure_and_no_file() -> None:
    first, second = (
        Problem.of(
            DataError(f"/data/sub-0{count}_T1w.nii.gz: {count} dimensions", "an image of 3 dimensions", "Split.")
        )
        for count in (4, 5)
    )
    assert reason_label(first) == reason_label(second) == "an image of # dimensions"
    assert reason_label(None) == ""
    assert reason_label(Problem("x; expected y. z.")) == "other"
    assert len(reason_label(Problem("x", "y" * 500, "z."))) == MOST_REASON
