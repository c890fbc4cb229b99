"""Runs, metrics and the model registry; the only room that imports MLflow.

Call :func:`configure` first: it chooses the store that the other functions use. MLflow takes seconds to import, so it
is imported inside functions.
"""

from mmh_ray.tracking.evaluations import cite, evaluation_of, move_alias, record_evaluation
from mmh_ray.tracking.inputs import RunInput, log_input
from mmh_ray.tracking.outbox import MetricsOutbox, send_left, sending_metrics
from mmh_ray.tracking.registry import (
    BASE,
    register,
    register_shipped,
    resolve_model,
    resolve_recorded,
    resolve_recorded_target,
    resolve_target,
    target_model_name,
)
from mmh_ray.tracking.runs import MetricRow, finish, log_file, log_metrics, mark_failed, start_run
from mmh_ray.tracking.store import configure
from mmh_ray.tracking.system_metrics import SystemMetrics

__all__ = [
    "BASE",
    "MetricRow",
    "MetricsOutbox",
    "RunInput",
    "SystemMetrics",
    "cite",
    "configure",
    "evaluation_of",
    "finish",
    "log_file",
    "log_input",
    "log_metrics",
    "mark_failed",
    "move_alias",
    "record_evaluation",
    "register",
    "register_shipped",
    "resolve_model",
    "resolve_recorded",
    "resolve_recorded_target",
    "resolve_target",
    "send_left",
    "sending_metrics",
    "start_run",
    "target_model_name",
]
