"""One method's figures without a cluster: groupings by site and by person, traits for ComBat, what pictures need."""

from __future__ import annotations

import numpy as np
import pytest

from mmh_ray.evaluation.baselines.feature_baselines import traits
from mmh_ray.evaluation.metrics.label_metrics import Medians
from mmh_ray.evaluation.metrics.method import Kept, cohort_figures, gather
from mmh_ray.evaluation.metrics.per_image import Bulk, Clock, Detail
from mmh_ray.evaluation.probes import clustering

pytestmark = pytest.mark.fast

NO_DETAIL = Detail((1, 1, 1), np.zeros((1, 1, 1), np.float16))
BY_PERSON = ("subject_silhouette", "subject_adjusted_rand", "subject_lisi", "subject_kbet", "subject_nearest")


def _cases(person: float, site: float, people: int = 10, visits: int = 3) -> list[Kept]:
    """People with a scan at every one of as many sites; features of person, site and chance."""
    cases, rng = [], np.random.default_rng(0)
    places = site * rng.normal(size=(visits, 6))
    for i in range(people):
        own, rows, bulks = person * rng.normal(size=6), [], {}
        for j in range(visits):
            name = f"sub-{i:02}_ses-{j}"
            rows.append({"image_id": name, "subject": f"{i:02}", "site": "abc"[j], "sequence": "T1w", "method": "raw"})
            rows[-1] |= {"age": None, "sex": "MF"[i % 2], "gm_share": None}
            values = own + places[j] + 0.3 * rng.normal(size=6)
            quantiles = np.linspace(0, 1 + j, 256)
            features = dict(zip("uvwxyz", values, strict=True))
            bulks["raw", name] = Bulk(quantiles, {}, None, features, None, features, NO_DETAIL)
        cases.append(Kept(rows, [], bulks))
    return cases


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP compiles for seconds; any other map will do."""

    def umap(features: np.ndarray, seed: int = 0) -> np.ndarray:
        return features[:, :2]

    monkeypatch.setattr(clustering, "umap", umap)


@pytest.mark.usefixtures("no_umap")
def test_people_are_read_beside_sites_and_the_better_way_is_the_other_one() -> None:
    told, mixed = (
        cohort_figures("raw", gather(_cases(*sizes), "raw"), (), 0, Clock())[0] for sizes in ((3, 0.1), (0.1, 3))
    )
    for name in BY_PERSON:
        up = name != "subject_lisi"
        values = [own.of(np.arange(30)) if own.reduce else own.values.mean() for own in (told[name], mixed[name])]
        assert (values[0] > values[1]) == up, (name, values)
    assert told["site_lisi"].values.mean() > mixed["site_lisi"].values.mean()


@pytest.mark.usefixtures("no_umap")
def test_maps_name_sites_and_people_and_histograms_are_means_of_quantiles() -> None:
    _, shown = cohort_figures("raw", gather(reversed(_cases(1, 1)), "raw"), (), 0, Clock())
    assert shown.maps.keys() == {"map", "umap"}
    assert shown.maps["map"].subjects[:4] == ("00", "00", "00", "01")
    assert shown.maps["umap"].places.shape == (30, 2)
    assert {site: own[-1] for site, own in shown.quantiles.items()} == {"a": 1, "b": 2, "c": 3}


def test_single_scans_have_no_grouping_by_person() -> None:
    found, _ = cohort_figures("zscore", gather(_as("zscore", _cases(1, 1, visits=1)), "zscore"), (), 0, Clock())
    assert not {*BY_PERSON} & found.keys()


def test_traits_are_those_that_every_image_has() -> None:
    rows = [{"age": 20.0, "sex": "M"}, {"age": 30.0, "sex": "F"}, {"age": 30.0, "sex": "F"}]
    train = np.array([True, True, False])
    assert traits(rows, train).tolist() == [[20, 0], [30, 1], [30, 1]]
    rows[2] = {"age": None, "sex": "F"}
    assert traits(rows, train).tolist() == [[0], [1], [1]]
    rows[0] |= {"sex": "O"}
    assert traits(rows, train) is None
    assert traits([{"age": 30.0, "sex": "M"}] * 3, train) is None


def _as(method: str, cases: list[Kept]) -> list[Kept]:
    """The same images of another method besides raw."""
    return [
        Kept(
            [row | {"method": method} for row in own.images],
            [],
            own.bulks | {(method, n): b for (_, n), b in own.bulks.items()},
        )
        for own in cases
    ]


@pytest.mark.usefixtures("no_umap")
def test_labelled_medians_are_compared_between_sites_of_one_table() -> None:
    """Sites a and b differ by a fifth of the range in grey, not in white; c is labelled otherwise, and an image not at all."""
    cases = _cases(1, 1)
    for case in cases:
        for key, bulk in list(case.bulks.items()):
            visit = int(key[1][-1])
            table = "tissues" if visit == 2 else "dlmuse"
            case.bulks[key] = bulk._replace(medians=Medians(table, 0.0, 0.5 + 0.1 * visit, 0.5))
    first = next(iter(cases[0].bulks))
    cases[0].bulks[first] = cases[0].bulks[first]._replace(medians=None)
    found, _ = cohort_figures("raw", gather(cases, "raw"), (), 0, Clock())
    grey, white = found["label_spread_gm"], found["label_spread_wm"]
    assert len(grey.units) == 29
    assert grey.of(np.arange(29)) == pytest.approx(0.2)
    assert white.of(np.arange(29)) == pytest.approx(0)
    assert grey.per_unit is None
    assert "label_spread_gm" not in cohort_figures("raw", gather(_cases(1, 1), "raw"), (), 0, Clock())[0]
