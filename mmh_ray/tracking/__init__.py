"""The only importer of MLflow: runs and their metrics, the registry, and the way from a model's name to its bundle.

Call :func:`configure` first: the others work on the store that it chose last. MLflow takes seconds to import, so that
happens in the functions.
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
from mmh_ray.tracking.runs import MetricRow, finish, log_figure, log_metrics, mark_failed, start_run
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
    "log_figure",
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
