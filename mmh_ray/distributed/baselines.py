"""Fits the baselines of an evaluation on training images, which are not scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mmh_ray.distributed.task_pool import map_unordered
from mmh_ray.evaluation.baselines.image_baselines import BASELINES, Baseline, Unfitted
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.inputs.scans import StyleFunction
from mmh_ray.evaluation.metrics.registry import RAW
from mmh_ray.evaluation.metrics.runner import EvaluationLog
from mmh_ray.evaluation.metrics.training import TrainingImage, training_image


def read_training(
    records: Sequence[ImageRecord],
    iterations: tuple[int, ...],
    style: StyleFunction | None,
    evaluation_log: EvaluationLog,
) -> dict[str, list[TrainingImage]]:
    """Readable training images by sequence, in the order of the records; the others are added to the log."""
    images: dict[str, TrainingImage] = {}
    for done in map_unordered(training_image, records, (iterations, style), "Fitting baselines", "images"):
        image_id = done.item.image_id
        if isinstance(done.result, Exception):
            evaluation_log.add_unusable(RAW, image_id, done.result)
        else:
            images[image_id] = done.result
    by_sequence: dict[str, list[TrainingImage]] = defaultdict(list)
    for record in records:
        if record.image_id in images:
            by_sequence[record.sequence].append(images[record.image_id])
    return dict(by_sequence)


def fit_baselines(methods: Iterable[str], training: Sequence[TrainingImage]) -> dict[str, Baseline]:
    """Baselines fitted on training images; without any, only those that need no fitting."""
    fitted: dict[str, Baseline] = {}
    for method in methods:
        baseline = BASELINES[method]
        if training:
            quantiles = [image.after if baseline.bias_corrected else image.before for image in training]
            fitted[method] = baseline.from_quantiles(quantiles)
        elif issubclass(baseline, Unfitted):
            fitted[method] = baseline()
    return fitted


def note_unfitted(
    methods: Iterable[str],
    baselines: Mapping[str, Mapping[str, Baseline]],
    target: str | None,
    notes: list[str],
) -> None:
    """Note for each sequence which methods could not be fitted."""
    missing = "image of split train" if target is None else f"usable scan of another person at {target}"
    for sequence, fitted in baselines.items():
        unfitted = [method for method in methods if method not in fitted]
        if unfitted:
            notes.append(f"{sequence}: no {missing}, so nothing to fit {', '.join(unfitted)} on")
