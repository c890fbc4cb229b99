"""Writes an evaluation to disk: metrics per image, pictures, JSON and the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmh_ray.evaluation.inputs.records import IMAGE_COLUMNS, ImageRecord
from mmh_ray.evaluation.metrics.registry import METRICS
from mmh_ray.evaluation.report.page import SiteMeans, write_evaluation_report
from mmh_ray.evaluation.report.pictures import Pictures, write_pictures
from mmh_ray.evaluation.statistics.metric_values import ValuesByMetric
from mmh_ray.provenance import whole_file, write_json

EVALUATION = "evaluation.json"
PER_IMAGE = "per_image.parquet"
REPORT = "report.html"
FIGURES = "figures"

TABLE_COLUMNS = (*IMAGE_COLUMNS, "method", *METRICS)
"""Columns of the table of metrics per image."""

_NUMBERS = {"age", *METRICS}
SCHEMA = pa.schema([(name, pa.float64() if name in _NUMBERS else pa.string()) for name in TABLE_COLUMNS])


def write_all(out: Path, evaluation: Mapping[str, Any], tables: Iterable[pa.Table], pictures: Pictures) -> None:
    """Write the Parquet table (one method at a time), the pictures, the report and finally the JSON."""
    by_site: list[SiteMeans] = []
    with whole_file(out / PER_IMAGE) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            by_site += _site_means(table)
    picture_paths = write_pictures(out / FIGURES, pictures)
    write_evaluation_report(out / REPORT, evaluation, by_site, picture_paths)
    write_json(out / EVALUATION, evaluation)


def images_table(method: str, records: Sequence[ImageRecord], metrics: ValuesByMetric) -> pa.Table:
    """One row per image of a method; the value of a pair metric is the mean over the image's pairs."""
    columns: dict[str, list[Any]] = {}
    for name in IMAGE_COLUMNS:
        columns[name] = [getattr(record, name) for record in records]
    columns["method"] = [method] * len(records)
    for name in METRICS:
        values = metrics[name].means(lambda unit: unit.split(" ")) if name in metrics else {}
        columns[name] = [values.get(record.image_id) for record in records]
    return pa.table(columns, schema=SCHEMA)


def _site_means(table: pa.Table) -> list[SiteMeans]:
    keys = ["sequence", "site", "method"]
    frame = table.select([*keys, "noise", "smoothness_mm"]).to_pandas()
    means = frame.groupby(keys, as_index=False).mean()
    is_known = means.notna()
    without_nan = means.astype(object).where(is_known, None)
    rows = without_nan.to_dict("records")
    return [SiteMeans(**row) for row in rows]
