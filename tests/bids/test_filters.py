"""BIDS filters: which images a query keeps, and the errors for invalid filter files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmh_ray.bids.entities import parse
from mmh_ray.bids.filters import NO_FILTERS, read_filters
from mmh_ray.errors import ConfigError
from tests.bids.archive_files import SPECIAL, put_special

pytestmark = pytest.mark.fast

IMAGES = (
    "sub-01_ses-1_T1w.nii.gz",
    "sub-01_ses-2_acq-fast_T1w.nii.gz",
    "sub-02_ses-2_run-01_T1w.nii.gz",
    "sub-02_ses-2_run-2_T1w.nii.gz",
    "sub-02_ses-2_T2w.nii.gz",
)


def kept(tmp_path: Path, content: Any) -> list[str]:
    """The images that the filter keeps."""
    path = tmp_path / "filter.json"
    path.write_text(json.dumps(content))
    filters = read_filters(path)
    return [name for name in IMAGES if filters.keeps(parse(name))]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"session": "2"}, [1, 2, 3]),
        ({"session": "ses-2", "subject": ["01", "sub-03"]}, [1]),
        ({"acquisition": None}, [0, 2, 3]),
        ({"acquisition": "*"}, [1]),
        ({"run": 1}, [2]),
        ({"run": "2"}, [3]),
        ({"run": [2, None]}, [0, 1, 3]),
        ({"session": "9"}, []),
        ({"datatype": "anat", "suffix": "T1w", "extension": [".nii", "nii.gz"]}, [0, 1, 2, 3]),
    ],
)
def test_a_query_keeps_the_images_of_its_sequence_that_match(
    tmp_path: Path, query: dict[str, Any], numbers: list[int]
) -> None:
    expected = [IMAGES[number] for number in numbers] + ["sub-02_ses-2_T2w.nii.gz"]
    assert kept(tmp_path, {"t1w": query}) == expected


def test_without_a_query_all_are_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, {}) == list(IMAGES)
    assert all(NO_FILTERS.keeps(parse(name)) for name in IMAGES)


@pytest.mark.parametrize(
    ("content", "received", "remedy"),
    [
        ({"t1": {}}, "query 't1'", "Did you mean 't1w'?"),
        ({"bold": {}}, "query 'bold'", "Remove it from the file"),
        ({"T1w": {}}, "query 'T1w'", "Did you mean 't1w'?"),
        ({"t1w": {"sesion": "1"}}, "entity 'sesion'", "Did you mean 'session'?"),
        ({"t1w": {"ses": "1"}}, "entity 'ses'", ""),
        ({"t1w": []}, "query 't1w': []", '{"session": "02"}'),
        ({"t1w": {"run": 1.5}}, "run: 1.5", ""),
        ({"t1w": {"run": True}}, "run: True", ""),
        ({"t1w": {"run": []}}, "an empty list", ""),
        ({"t1w": {"run": {"a": 1}}}, "run: {'a': 1}", ""),
        ({"t1w": {"datatype": "func"}}, "datatype 'func'", "leave it out"),
        ({"t1w": {"suffix": "T2w"}}, "suffix 'T2w'", "leave it out"),
        ([], "JSON with a list", "t1w"),
    ],
)
def test_what_is_not_known_is_refused_with_a_remedy(tmp_path: Path, content: Any, received: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kept(tmp_path, content)
    assert received in caught.value.received
    assert str(tmp_path / "filter.json") in caught.value.received
    assert caught.value.expected
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("text", ["", "{", '{"t1w": {}, "t1w": {}}', "[" * 100_000, '{"t1w": NaN}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "filter.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="filter file"):
        read_filters(path)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    put_special(tmp_path / "filter.json", kind)
    with pytest.raises(ConfigError, match="filter file"):
        read_filters(tmp_path / "filter.json")
