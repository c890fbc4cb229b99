"""Metrics become values with intervals, and differences are computed image by image."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmh_ray.evaluation.statistics.bootstrap import Interval
from mmh_ray.evaluation.statistics.metric_values import MetricValues
from mmh_ray.evaluation.statistics.summary import by_sequence, difference, entry, interval, site_means

pytestmark = pytest.mark.fast

SUBJECTS = ("a", "a", "b", "b", "c", "c")
UNITS = tuple(f"image{i}" for i in range(6))


def _metric(values, **facts) -> MetricValues:
    return MetricValues(np.asarray(values, float), UNITS[: len(values)], SUBJECTS[: len(values)], **facts)


def test_a_figure_is_the_mean_and_subjects_are_counted():
    found = interval(_metric([1, 1, 2, 2, 6, 6]), draws=200)
    assert (found.value, found.n) == (3, 3)
    assert 1 <= found.low < 3 < found.high <= 6


def test_with_strata_it_is_the_mean_of_their_means():
    sites = ("x", "x", "x", "x", "y", "y")
    assert interval(_metric([1, 1, 1, 1, 0, 0], strata=sites), draws=200).value == 0.5


def test_a_reduction_sees_rows_and_labels():
    def spread(values: np.ndarray, labels: np.ndarray) -> float:
        return float(values[labels == "x"].max() - values.min())

    found = interval(_metric([1, 2, 3, 4, 5, 9], reduce=spread, labels=("x",) * 6), draws=200)
    assert found.value == 8
    assert found.high <= 8


def test_differences_are_over_shared_units_whatever_their_order():
    ours = _metric([1, 2, 3, 4, 5, 6])
    other = _metric([10, 12, 13, 14]).only(["image3", "image1"])
    found = difference(ours, other, draws=200)
    assert found is not None
    assert found.value == np.mean([4 - 14, 2 - 12])
    assert found.n == 2


def test_a_constant_shift_has_an_interval_without_width():
    found = difference(_metric([1, 5, 2, 8, 3, 0]), _metric([2, 6, 3, 9, 4, 1]), draws=200)
    assert found is not None
    assert found[:4] == (-1, -1, -1, 3)


def test_differences_of_reductions_are_paired_too():
    facts = {"reduce": lambda values, labels: float(np.median(values)), "labels": SUBJECTS}
    found = difference(_metric([1, 5, 2, 8, 3, 0], **facts), _metric([2, 6, 3, 9, 4, 1], **facts), draws=200)
    assert found is not None
    assert found[:3] == (-1, -1, -1)
    assert np.isnan(found.p)
    assert entry(found)["p"] is None


def test_an_entry_of_numpy_scalars_can_be_written_as_json():
    made = entry(Interval(np.float32(0.5), np.float32(0.25), np.float32(np.nan), 3))
    assert json.loads(json.dumps(made)) == {"value": 0.5, "low": 0.25, "high": None, "n": 3}


def test_nothing_shared_is_no_difference_and_no_value_no_entry():
    other = MetricValues(np.ones(1), ("elsewhere",), ("d",))
    assert difference(_metric([1, 2]), other, draws=200) is None
    assert entry(interval(_metric([np.nan, np.nan]), draws=200)) is None


def test_chance_stands_beside_the_value():
    made = entry(interval(_metric([1, 0, 1, 0]), draws=200), {"chance": 0.5})
    assert made is not None
    assert (made["value"], made["chance"], made["n"]) == (0.5, 0.5, 2)


def test_means_by_site_are_over_the_images_that_have_the_measure():
    images = {"one": "birch", "two": "birch", "three": "alder"}
    some = MetricValues(np.array([1.0, 2.0, 6.0]), ("one", "two", "three"), ("a", "b", "c"))
    fewer = MetricValues(np.array([5.0]), ("two",), ("b",))
    found = site_means({"w1": some, "psnr": fewer}, images)
    assert list(found) == ["alder", "birch"]
    assert found == {"alder": {"w1": 6, "n": 1}, "birch": {"w1": 1.5, "psnr": 5, "n": 2}}
    assert site_means({}, images) == {}


def test_by_sequence_leaves_only_methods():
    evaluation = {"ours": {"T1w": {"w1": {"value": 1.5, "low": 1}}}, "differences": {"raw": {}}, "about": {}}
    assert by_sequence(evaluation) == {"T1w": {"ours": {"w1": 1.5}}}
