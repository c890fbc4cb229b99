"""System metrics of a machine, under MLflow's names, no more often than requested."""

from __future__ import annotations

import pytest

from mmh_ray.tracking import SystemMetrics

pytestmark = pytest.mark.fast


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(mlflow|pydantic)(\..*)?")
@pytest.mark.filterwarnings(r"ignore::FutureWarning:mlflow(\..*)?")
def test_processor_and_memory_are_measured_when_due() -> None:
    values = SystemMetrics(every_s=0.0).due()
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100
    assert 0 < values["system/system_memory_usage_percentage"] < 100
    assert all(name.startswith("system/") for name in values)
    of_node = SystemMetrics("node-1", every_s=0.0).due()
    assert "system/node-1/cpu_utilization_percentage" in of_node


def test_nothing_is_measured_before() -> None:
    assert SystemMetrics().due() == {}
