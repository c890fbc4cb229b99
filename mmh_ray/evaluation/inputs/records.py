"""Holds what is known about an image before it is read: its manifest row and the paths of related files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

IMAGE_COLUMNS = ("image_id", "subject", "site", "sequence", "age", "sex")
"""Facts of an image that the tables of metrics repeat."""

_SEX_CODES = {"M": 0.0, "F": 1.0}


@dataclass(frozen=True)
class ImageRecord:
    """One usable image of the raw archive.

    Attributes
    ----------
    uri, mask_uri:
        Paths of the scan and of its brain mask; without a mask the brain is estimated.
    age, sex:
        In years; ``M`` or ``F``. None if unknown.
    outputs:
        Path of each method's output, by the name of its archive.
    lesion_uri:
        Path of a lesion mask.
    labels_uri, labels_names, labels_space:
        Path of a label map, the values of its `desc` and similar entities, and the template space in its name.
    """

    image_id: str
    subject: str
    site: str
    sequence: str
    uri: str = ""
    mask_uri: str | None = None
    session: str | None = None
    split: str | None = None
    age: float | None = None
    sex: str | None = None
    sha256: str | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    lesion_uri: str | None = None
    labels_uri: str | None = None
    labels_names: Sequence[str] | None = None
    labels_space: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ImageRecord:
        """From a row of the manifest; other columns are ignored."""
        columns = [column.name for column in fields(cls)]
        known = {name: row[name] for name in columns if name in row}
        return cls(**known)


def ages_of(records: Iterable[ImageRecord]) -> np.ndarray:
    """``(n,)`` in years; NaN where unknown."""
    ages = [np.nan if record.age is None else record.age for record in records]
    return np.array(ages, dtype=np.float64)


def sexes_of(records: Iterable[ImageRecord]) -> np.ndarray:
    """``(n,)`` 0 for male, 1 for female; NaN where unknown."""
    codes = [_SEX_CODES.get(record.sex or "", np.nan) for record in records]
    return np.array(codes)
