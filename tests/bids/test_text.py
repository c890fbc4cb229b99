"""Untrusted values become clean text and numbers or None; messages have limited length."""

import pytest

from mmh_ray.bids.text import MOST_LISTED, Findings, listed, number_of, text_of

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" A ", "A"),
        (7, "7"),
        (1.5, "1.5"),
        ("A\tB\nC", "A B C"),
        ("A\x00\x1b[0m", "A [0m"),
        ("Zu\u0308rich", "Z\u00fcrich"),
        ("東京", "東京"),
        ("x" * 200, "x" * 200),
        ("x" * 201, None),
        ("é" * 5000, None),
        ("\ud800", None),
        pytest.param(10**5000, None, id="5001 digits"),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (None, None),
        (["A"], None),
        ({"a": 1}, None),
        ("n/a", None),
        ("N/A", None),
        ("NA", None),
        ("null", None),
        (" ", None),
    ],
)
def test_text(value, expected):
    assert text_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3),
        (" 1.5 ", 1.5),
        (3, 3),
        (0, 0),
        (30, 30),
        (30.1, None),
        (-1, None),
        (True, None),
        ("1_0", None),
        ("\u0663", None),
        ("nan", None),
        (float("nan"), None),
        (float("inf"), None),
        (10**401, None),
        ("9" * 401, None),
        ([3], None),
        (None, None),
        ("", None),
    ],
)
def test_numbers(value, expected):
    assert number_of(value, 30.0) == expected


def test_messages_name_few_and_count_all(caplog):
    names = [f"name {number}" for number in range(100)]
    assert listed(names[:MOST_LISTED]) == ", ".join(names[:MOST_LISTED])
    assert listed(names) == f"{', '.join(names[:MOST_LISTED])} and {100 - MOST_LISTED} more"
    assert len(listed(["x" * 10**6] * 10**5)) < 3000
    findings = Findings()
    findings.note("nothing", [])
    findings.note("a name", "a\nb")
    findings.note("a name", names)
    findings.warn()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("101 x a name: a\\nb, name 0")
