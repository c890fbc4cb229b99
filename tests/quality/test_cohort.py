"""Order of urgency, counts and reasons of a cohort."""

from __future__ import annotations

import math

import pytest

from mmh_ray.bids.rows import Problem
from mmh_ray.quality.cohort import concerns, counts, failures, headline, worst_first

pytestmark = pytest.mark.fast


def test_worst_first_is_failed_refused_flagged_then_least_kept_and_unknown_last(image, measures):
    def kept(value):
        return {"preservation": value}

    expected = [
        image(image_id="failed", status="failed", qc={}),
        image(image_id="refused", status="refused", qc={}),
        image(image_id="two flags", flags=("a", "b"), qc=kept(0.99)),
        image(image_id="beyond a bound", qc=kept(0.8)),
        image(image_id="one flag", flags=("a",), qc=kept(0.97)),
        image(image_id="least kept", qc=kept(0.9)),
        image(image_id="most kept", status="skipped", qc=kept(0.98)),
        image(image_id="NaN", qc=kept(math.nan)),
        image(image_id="none", qc={}),
    ]
    shuffled = expected[::2] + expected[1::2]
    assert [i.image_id for i in worst_first(shuffled, measures)] == [i.image_id for i in expected]


def test_a_value_beyond_a_bound_and_its_flag_are_one_concern(image, measures):
    assert concerns(image(), measures) == 0
    assert concerns(image(qc={"preservation": math.nan}), measures) == 0
    assert concerns(image(qc={"preservation": 0.5, "noise": 0.5}), measures) == 2
    assert concerns(image(qc={"preservation": 0.5}, flags=("Little of the anatomy was kept.",)), measures) == 1


@pytest.mark.parametrize(
    ("statuses", "flagged", "expected"),
    [
        ([], 0, "No images in this run"),
        (["done"], 0, "1 of 1 image harmonized; none to look at"),
        (["done"] * 72 + ["refused"] * 2, 3, "72 of 74 images harmonized; 2 refused; 3 to look at"),
        (["done", "skipped", "failed"], 0, "2 of 3 images harmonized (1 by an earlier run); 1 failed; none to look at"),
        (["failed"] * 1200, 1, "0 of 1,200 images harmonized; 1,200 failed"),
    ],
)
def test_headline(image, measures, statuses, flagged, expected):
    images = [image(status=status, flags=("a",) * (i < flagged)) for i, status in enumerate(statuses)]
    assert headline(images, measures) == expected


def test_counts_add_up_and_images_without_a_site_come_last(image, many, measures):
    images = [*many(400), image(site=None), image(site=None, status="failed")]
    rows = counts(images, measures)
    assert sum(sum(row.by_status) for row in rows) == len(images)
    assert sum(row.look for row in rows) == sum(concerns(i, measures) > 0 for i in images)
    assert [row.site for row in rows] == ["alpha", "beta", "delta", "gamma", "(no site)"]
    assert rows[-1].by_status == (1, 0, 0, 1)


def test_images_that_failed_for_one_reason_stand_together(image):
    cut = [
        image(
            image_id=f"sub-{i}_T1w",
            subject=f"{i}",
            status="failed",
            problem=Problem(
                f"/archive/sub-{i}/anat/sub-{i}_T1w.nii.gz: cut at 0.{i} (sub-{i}_T1w.nii.gz), spacing 1",
                "a whole file",
            ),
        )
        for i in (1, 1, 1)
    ]
    refused = [
        image(image_id=f"sub-{i}_PDw", subject=f"{i}", status="refused", problem=Problem("PDw")) for i in range(4)
    ]
    groups = failures([*cut, *refused, image(), image(status="failed", problem=None)])
    assert [(group.status, group.problem.text, len(group.image_ids)) for group in groups] == [
        ("refused", "PDw", 4),
        ("failed", "cut at 0.1 (…), spacing 1; expected a whole file.", 3),
        ("failed", "no reason given", 1),
    ]
