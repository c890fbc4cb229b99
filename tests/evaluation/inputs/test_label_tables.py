"""The tables assign numbers as their labellings define them; a number belongs to at most one class."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import pytest

from mmh_ray.evaluation.inputs.label_tables import UNKNOWN, TableName, label_table

pytestmark = pytest.mark.fast

NONE, CSF, GM, WM = range(4)


@pytest.mark.parametrize("name", get_args(TableName))
def test_no_number_is_two_things(name: TableName) -> None:
    table = label_table(name)
    for one, other in combinations(table, 2):
        assert not one & other
    codes = table.codes()
    assert codes[0] == NONE
    assert (codes != UNKNOWN).sum() == 1 + sum(map(len, table))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        (
            "freesurfer",
            {
                CSF: (4, 5, 14, 15, 24, 43, 44),
                GM: (3, 8, 42, 47, 1001, 1035, 2034, 11101, 12175),
                WM: (2, 7, 41, 46, 251, 255, 3028, 14174),
                NONE: (10, 11, 12, 13, 16, 17, 18, 26, 28, 49, 52, 53, 58, 77, 85, 1000, 2000, 12142, 502, 530),
                UNKNOWN: (999, 1100, 10999),
            },
        ),
        (
            "dlmuse",
            {
                CSF: (1, 4, 11, 46, 49, 50, 51, 52),
                GM: (38, 39, 71, 72, 73, 100, 207),
                WM: (40, 41, 81, 82, 88, 89, 95),
                NONE: (23, 30, 31, 32, 35, 36, 37, 47, 48, 55, 57, 59, 60, 61, 62, 69, 75, 76),
                UNKNOWN: (2, 3, 5, 96, 99),
            },
        ),
        ("tissues", {CSF: (1,), GM: (2,), WM: (3,)}),
        ("bids", {CSF: (3,), GM: (1, 8), WM: (2,), NONE: (4, 7, 9, 10, 11)}),
    ],
)
def test_numbers_are_what_their_dictionaries_say(name: TableName, numbers: dict[int, tuple[int, ...]]) -> None:
    codes = label_table(name).codes()
    for code, own in numbers.items():
        assert set(codes[list(own)]) == {code}, (name, code)


def test_cortical_parcels_of_dlmuse_are_grey_without_gaps() -> None:
    assert set(label_table("dlmuse").codes()[100:]) == {GM}
