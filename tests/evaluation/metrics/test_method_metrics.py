"""One method's metrics without a cluster: clustering by site and by person, traits for ComBat, data of pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmh_ray.evaluation.baselines.feature_baselines import traits
from mmh_ray.evaluation.inputs.records import ImageRecord
from mmh_ray.evaluation.metrics.cohort_inputs import CohortInputs, FineDetail
from mmh_ray.evaluation.metrics.label_metrics import Medians
from mmh_ray.evaluation.metrics.method_metrics import gather, metrics_and_pictures
from mmh_ray.evaluation.metrics.per_image import ImageMetrics
from mmh_ray.evaluation.metrics.runner import MetricRunner
from mmh_ray.evaluation.metrics.scoring import CaseMetrics
from mmh_ray.evaluation.probes import clustering

pytestmark = pytest.mark.fast

NO_DETAIL = FineDetail((1, 1, 1), np.zeros((1, 1, 1), np.float16))
BY_PERSON = ("subject_silhouette", "subject_adjusted_rand", "subject_lisi", "subject_kbet", "subject_nearest")


def _cases(person: float, site: float, people: int = 10, visits: int = 3) -> list[CaseMetrics]:
    """People, each with one scan at every site; features are the sum of person, site and noise."""
    cases, rng = [], np.random.default_rng(0)
    places = site * rng.normal(size=(visits, 6))
    for i in range(people):
        own = person * rng.normal(size=6)
        case = CaseMetrics()
        for j in range(visits):
            name = f"sub-{i:02}_ses-{j}"
            record = ImageRecord(name, f"{i:02}", "abc"[j], "T1w", sex="MF"[i % 2])
            case.images.append(ImageMetrics(record, "raw", {}))
            values = own + places[j] + 0.3 * rng.normal(size=6)
            quantiles = np.linspace(0, 1 + j, 256)
            features = dict(zip("uvwxyz", values, strict=True))
            case.cohort_inputs["raw", name] = CohortInputs(quantiles, {}, None, features, features, NO_DETAIL)
        cases.append(case)
    return cases


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP takes seconds to compile; a simple projection replaces it."""

    def umap(features: np.ndarray, seed: int = 0) -> np.ndarray:
        return features[:, :2]

    monkeypatch.setattr(clustering, "umap", umap)


@pytest.mark.usefixtures("no_umap")
def test_people_are_read_beside_sites_and_the_better_way_is_the_other_one() -> None:
    told, mixed = (
        metrics_and_pictures("raw", gather(_cases(*sizes), "raw"), (), 0, MetricRunner())[0]
        for sizes in ((3, 0.1), (0.1, 3))
    )
    for name in BY_PERSON:
        up = name != "subject_lisi"
        values = [own.of(np.arange(30)) if own.reduce else own.values.mean() for own in (told[name], mixed[name])]
        assert (values[0] > values[1]) == up, (name, values)
    assert told["site_lisi"].values.mean() > mixed["site_lisi"].values.mean()


@pytest.mark.usefixtures("no_umap")
def test_maps_name_sites_and_people_and_histograms_are_means_of_quantiles() -> None:
    _, shown = metrics_and_pictures("raw", gather(reversed(_cases(1, 1)), "raw"), (), 0, MetricRunner())
    assert shown.maps.keys() == {"map", "umap"}
    assert shown.maps["map"].subjects[:4] == ("00", "00", "00", "01")
    assert shown.maps["umap"].points.shape == (30, 2)
    assert {site: own[-1] for site, own in shown.quantiles.items()} == {"a": 1, "b": 2, "c": 3}


def test_single_scans_have_no_grouping_by_person() -> None:
    found, _ = metrics_and_pictures(
        "zscore", gather(_as("zscore", _cases(1, 1, visits=1)), "zscore"), (), 0, MetricRunner()
    )
    assert not {*BY_PERSON} & found.keys()


def test_traits_are_those_that_every_image_has() -> None:
    def record(age: float | None, sex: str) -> ImageRecord:
        return ImageRecord("i", "1", "a", "T1w", age=age, sex=sex)

    records = [record(20.0, "M"), record(30.0, "F"), record(30.0, "F")]
    train = np.array([True, True, False])
    assert traits(records, train).tolist() == [[20, 0], [30, 1], [30, 1]]
    records[2] = record(None, "F")
    assert traits(records, train).tolist() == [[0], [1], [1]]
    records[0] = record(20.0, "O")
    assert traits(records, train) is None
    assert traits([record(30.0, "M")] * 3, train) is None


def _as(method: str, cases: list[CaseMetrics]) -> list[CaseMetrics]:
    """The same images of another method besides raw."""
    return [
        CaseMetrics(
            images=[replace(image, method=method) for image in case.images],
            cohort_inputs=case.cohort_inputs
            | {(method, image_id): inputs for (_, image_id), inputs in case.cohort_inputs.items()},
        )
        for case in cases
    ]


@pytest.mark.usefixtures("no_umap")
def test_labelled_medians_are_compared_between_sites_of_one_table() -> None:
    """Sites a and b differ by a fifth of the range in grey, not in white; c has another table, one image no labels."""
    cases = _cases(1, 1)
    for case in cases:
        for key, inputs in list(case.cohort_inputs.items()):
            visit = int(key[1][-1])
            table = "tissues" if visit == 2 else "dlmuse"
            case.cohort_inputs[key] = replace(inputs, medians=Medians(table, 0.0, 0.5 + 0.1 * visit, 0.5))
    first = next(iter(cases[0].cohort_inputs))
    cases[0].cohort_inputs[first] = replace(cases[0].cohort_inputs[first], medians=None)
    found, _ = metrics_and_pictures("raw", gather(cases, "raw"), (), 0, MetricRunner())
    grey, white = found["label_spread_gm"], found["label_spread_wm"]
    assert len(grey.units) == 29
    assert grey.of(np.arange(29)) == pytest.approx(0.2)
    assert white.of(np.arange(29)) == pytest.approx(0)
    assert grey.per_unit is None
    assert "label_spread_gm" not in metrics_and_pictures("raw", gather(_cases(1, 1), "raw"), (), 0, MetricRunner())[0]
