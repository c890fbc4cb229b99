"""Brain age and associations where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

from mmh_ray.errors import DataError
from mmh_ray.evaluation.probes.downstream import association, brain_age, choose_penalty

pytestmark = pytest.mark.fast

PEOPLE = 60


def _cohort(rng, error: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, age, subject and site of 60 people; the first feature is age, the last is the site, the rest noise."""
    age, site = rng.uniform(20, 80, PEOPLE), np.arange(PEOPLE) % 3
    features = np.column_stack([age + rng.normal(0, error, PEOPLE), rng.normal(size=(PEOPLE, 4)), site])
    return features, age, np.arange(PEOPLE).astype(str), np.array(["a", "b", "c"])[site]


def test_age_in_the_features_is_found_and_chance_is_not(rng):
    features, age, subject, site = _cohort(rng)
    for where in (None, site):
        found = brain_age(features, age, subject, where)
        assert found.mae == pytest.approx(0.8, abs=0.5)  # mean |N(0, 1)| is 0.80
        assert found.baseline > 12
        empty = brain_age(features[:, 1:5], age, subject, where)
        assert empty.mae > 0.9 * empty.baseline


def test_a_person_is_never_in_training_and_test(rng):
    """Two scans per person, and features that only identify the person: a leak would predict the age exactly."""
    age, who = rng.uniform(20, 80, 30), np.repeat(np.arange(30), 2)
    features = np.eye(30)[who]
    for site in (None, np.tile(["a", "b"], 30)):
        found = brain_age(features, age[who], who.astype(str), site)
        assert found.mae > 0.8 * found.baseline


def test_the_penalty_is_scikit_learns_and_chosen_among_other_people(rng):
    people, features = np.repeat(np.arange(30), 2), rng.normal(size=(60, 8))
    target = 3 * features[:, 0] + rng.normal(size=60)
    folds = list(GroupKFold(5).split(people, groups=people))
    found = RidgeCV(np.logspace(-2, 4, 13), cv=folds, scoring="neg_mean_squared_error").fit(features, target)
    assert choose_penalty(features, target, people) == found.alpha_
    # features that name the person: images of their own would want no penalty
    named = rng.normal(size=(30, 30))[people]
    ages = rng.normal(size=30)[people]
    assert choose_penalty(named, ages, people) > 10 * choose_penalty(named, ages, np.arange(60))


def test_an_offset_of_one_site_costs_years_only_when_the_site_is_left_out(rng):
    features, age, subject, site = _cohort(rng)
    features[site == "c", 0] += 30
    assert brain_age(features, age, subject, site).errors[site == "c"].mean() > 10
    assert brain_age(features, age, subject).mae < 10


def test_no_answer_lies_beyond_the_ages_of_training(rng):
    features, age, subject, site = _cohort(rng)
    features[site == "c"] *= 1000
    predicted = brain_age(features, age, subject, site).predicted
    assert age.min() <= predicted.min() < predicted.max() <= age.max()


def test_unknown_ages_are_left_out_and_none_is_an_error(rng):
    features, age, subject, _ = _cohort(rng)
    age[::2] = np.nan
    found = brain_age(features, age, subject)
    assert np.isnan(found.errors[::2]).all()
    assert np.isfinite(found.errors[1::2]).all()
    with pytest.raises(DataError, match="known age"):
        brain_age(features, np.full(PEOPLE, np.nan), subject)


def test_association_is_spearmans_at_one_site_and_blind_to_older_sites(rng):
    x, age = rng.normal(size=50), rng.normal(size=50)
    assert association(x, age, ["a"] * 50) == pytest.approx(spearmanr(x, age).statistic)
    site = np.repeat(["a", "b"], 25)
    older = (site == "b") * 20.0
    assert spearmanr(x + older, age + older).statistic > 0.6
    assert abs(association(x + older, age + older, site)) < 0.35
    assert association(age**3, age, site) == pytest.approx(1, abs=0.05)
    assert np.isnan(association(np.ones(50), age, site))
