"""Metrics of labelled tissues on images with known results."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.evaluation.inputs.labels import LabelMap
from mmh_ray.evaluation.metrics.label_metrics import (
    LABEL_METRICS,
    Medians,
    auc,
    label_metrics,
    median_change,
    median_contrast,
    medians,
    mixture_dice,
    site_label,
    spread_between_sites,
)

pytestmark = pytest.mark.fast


@pytest.fixture
def drawn() -> LabelMap:
    """A thousand voxels of each tissue."""
    tissues = np.zeros((10, 40, 10), np.uint8)
    tissues.reshape(10, 4, 10, 10)[:] = np.arange(4, dtype=np.uint8)[:, None, None]
    return LabelMap(tissues, "tissues", 0.9, {})


def _image(drawn: LabelMap, csf: float, gm: float, wm: float) -> np.ndarray:
    return np.array([0, csf, gm, wm], np.float32)[drawn.tissues]


def test_auc_of_known_sets(rng) -> None:
    dark, bright = rng.normal(0, 1, 500), rng.normal(10, 1, 400) + 20
    assert auc(bright, dark) == 1
    assert auc(dark, bright) == 0
    assert auc(dark, dark) == 0.5
    assert auc(np.ones(3), np.ones(7)) == 0.5
    assert auc(np.array([1, 2, 2, 3]), np.array([0, 2])) == (1 + 1.5 + 1.5 + 2) / 8
    assert auc(np.array([np.inf]), np.array([1.0])) == 1


def test_auc_is_the_share_of_pairs_and_no_increasing_curve_changes_it(rng) -> None:
    bright, dark = rng.integers(0, 20, 300) + 5.0, rng.integers(0, 20, 200).astype(float)
    pairs = np.mean((bright[:, None] > dark) + 0.5 * (bright[:, None] == dark))
    assert auc(bright, dark) == pytest.approx(pairs, abs=1e-12)
    assert auc(np.exp(bright / 9), np.exp(dark / 9)) == auc(bright, dark)


def test_auc_of_two_normal_distributions(rng) -> None:
    found = auc(rng.normal(1, 1, 200_000), rng.normal(0, 1, 200_000))
    assert found == pytest.approx(0.7602, abs=0.003)  # Φ(1 / √2)


def test_contrast_of_constructed_sets() -> None:
    assert median_contrast(np.array([1.0, 1.0, 9.0]), np.array([0.7, 0.7, 0.0])) == pytest.approx(0.3)
    assert median_contrast(np.array([0.5]), np.array([1.0])) == -1
    assert median_contrast(np.array([4.0]), np.array([0.0])) == 1
    assert np.isnan(median_contrast(np.array([1.0]), np.array([-0.5])))  # a z-score has no zero
    assert np.isnan(median_contrast(np.array([0.0]), np.array([0.0])))


@pytest.mark.parametrize(
    ("sequence", "look"),
    [("T1w", (0.2, 0.7, 1.0)), ("T2w", (1.5, 1.0, 0.7)), ("FLAIR", (0.1, 1.0, 0.7)), ("PDw", (0.9, 1.0, 0.7))],
)
def test_every_sequence_has_its_direction_and_1_is_best(drawn: LabelMap, sequence: str, look) -> None:
    functions = label_metrics(_image(drawn, *look), drawn.tissues, drawn, sequence)
    found = {name: function() for name, function in functions.items()}
    assert found["label_auc_wm"] == 1
    assert found["label_contrast"] == pytest.approx(0.3)
    assert found["label_dice"] == 1
    assert found["label_inside"] == 0.9
    assert found.keys() == {*LABEL_METRICS} - ({"label_auc_csf"} if sequence == "PDw" else set())
    assert found.get("label_auc_csf", 1) == 1
    inverted = label_metrics(2 - _image(drawn, *look), drawn.tissues, drawn, sequence)
    assert inverted["label_auc_wm"]() == 0
    assert inverted["label_contrast"]() < 0


def test_contrast_to_noise_is_in_standard_deviations(drawn: LabelMap, rng) -> None:
    image = _image(drawn, 0.2, 0.7, 1.0) + rng.normal(0, 0.1, drawn.tissues.shape)
    found = label_metrics(image, None, drawn, "T1w")
    assert found["label_cnr"]() == pytest.approx(3, rel=0.1)
    assert found["label_auc_wm"]() == pytest.approx(0.983, abs=0.005)  # Φ(3 / √2)
    assert "label_dice" not in found


def test_tissues_that_were_not_drawn_and_other_sequences_have_no_figures(drawn: LabelMap) -> None:
    image = _image(drawn, 0.2, 0.7, 1.0)
    some = LabelMap(drawn.tissues * (drawn.tissues > 1), "tissues", 1.0, {})
    assert label_metrics(image, None, some, "T1w").keys() == {
        "label_auc_wm",
        "label_contrast",
        "label_cnr",
        "label_inside",
    }
    grey = LabelMap(2 * (drawn.tissues == 2).astype(np.uint8), "tissues", 1.0, {})
    assert label_metrics(image, None, grey, "T1w").keys() == {"label_inside"}
    assert label_metrics(image, None, drawn, "bold").keys() == {"label_cnr", "label_inside"}


def test_mixture_dice_is_of_grey_and_white_where_something_was_drawn(drawn: LabelMap) -> None:
    labels = drawn.tissues
    assert mixture_dice(labels, labels) == 1
    assert mixture_dice(np.where(labels == 0, 2, labels), labels) == 1  # deep grey, which was not drawn, found as grey
    assert mixture_dice(np.where(labels == 1, 0, labels), labels) == 1  # fluid does not count
    assert mixture_dice(np.where(labels == 1, 2, labels), labels) == pytest.approx((2 / 3 + 1) / 2)
    assert mixture_dice(np.where(labels == 3, 2, labels), labels) == pytest.approx((2 / 3 + 0) / 2)
    assert mixture_dice(np.ones_like(labels), labels) == 0


def test_medians_and_their_change(drawn: LabelMap) -> None:
    first = medians(_image(drawn, 0.1, 0.6, 0.9), drawn)
    assert first == pytest.approx(("tissues", 0.1, 0.6, 0.9))
    assert first.fluid_to_white == pytest.approx(0.8)
    second = first._replace(gm=0.64, wm=0.88)
    assert median_change(first, second) == pytest.approx((0.04 + 0.02) / 2 / 0.79)
    assert median_change(first, first) == 0
    assert np.isnan(median_change(first, first._replace(table="dlmuse")))
    assert np.isnan(median_change(first, first._replace(csf=float("nan"))))
    assert np.isnan(median_change(Medians("tissues", 0.5, 0.5, 0.5), Medians("tissues", 0.5, 0.5, 0.5)))


def test_spread_is_between_sites_of_one_table() -> None:
    values = np.array([[0.60, 0.8], [0.62, 0.8], [0.70, 0.8], [0.30, 0.5], [0.9, 0.8]])
    labels = np.array([site_label("dlmuse", "a"), site_label("dlmuse", "a"), site_label("dlmuse", "b:c"), "tissues:a"])
    assert spread_between_sites(values[:4], labels) == pytest.approx((0.70 - 0.61) / 0.8)
    three = np.append(labels, site_label("dlmuse", "d"))
    assert spread_between_sites(values, three) == pytest.approx((0.09 + 0.29 + 0.20) / 3 / 0.8)
    assert np.isnan(spread_between_sites(values[:2], labels[:2]))  # one site
    assert np.isnan(spread_between_sites(values[1:4:2], labels[1:4:2]))  # two sites, two tables
    flat = np.array([[0.5, 0.0], [0.6, 0.0]])
    assert np.isnan(spread_between_sites(flat, np.array(["t:a", "t:b"])))
