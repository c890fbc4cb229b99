"""Defines the rows of the three tables (manifest, prepared volumes, ledger), their statuses, and errors in rows."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

from mmh_ray.errors import MMHError

if TYPE_CHECKING:
    import numpy as np


class Status(StrEnum):
    """Result of an image. A member is equal to its text, which is stored in files."""

    OK = "ok"
    """Manifest and prepared volumes: usable."""
    UNUSABLE = "unusable"
    """Manifest: not usable."""
    DONE = "done"
    """Ledger: harmonized by this run."""
    SKIPPED = "skipped"
    """Ledger: harmonized by an earlier run from the same input, model and settings."""
    FAILED = "failed"
    """Ledger and prepared volumes: an error occurred."""
    REFUSED = "refused"
    """Ledger: the model is not made for this scan."""


LEDGER_STATUSES = (Status.DONE, Status.SKIPPED, Status.FAILED, Status.REFUSED)
MADE = (Status.DONE, Status.SKIPPED)
"""Statuses of images with a current output."""
NO_RESULT = (Status.FAILED, Status.REFUSED)
"""Statuses of images without an output."""


class Problem(NamedTuple):
    """Why an image has no result: the three parts of an error. Rows of older versions have only the first.

    Attributes
    ----------
    reason:
        What was received.
    expected:
        What is needed instead.
    remedy:
        What the user can do.
    """

    reason: str
    expected: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The parts of an MMHError; the text of any other error."""
        if isinstance(error, MMHError):
            return cls(error.received, error.expected, error.remedy)
        return cls(str(error))

    @property
    def text(self) -> str:
        """One line, with the same words as the error."""
        line = self.reason
        if self.expected:
            line += f"; expected {self.expected}."
        if self.remedy:
            line += f" {self.remedy}"
        return line

    def without_path(self, path: str | None) -> Problem:
        """A copy without the file name at the beginning, so that equal problems of different images can be counted."""
        return self._replace(reason=self.reason.removeprefix(f"{path}: "))


class ManifestRow(TypedDict):
    """One image of an archive: the columns of :data:`mmh_ray.bids.schema.SCHEMA`."""

    image_id: str
    uri: str
    subject: str | None
    session: str | None
    site: str | None
    sequence: str | None
    split: str | None
    mask_uri: str | None
    age: float | None
    sex: str | None
    manufacturer: str | None
    field_strength_t: float | None
    shape: list[int] | None
    spacing_mm: list[float] | None
    orientation: str | None
    bytes: int | None
    sha256: str | None
    status: str
    reason: str | None
    problem: NotRequired[Problem]
    """The parts of ``reason`` while the row is in memory; not a column of the file."""


class PreparedRow(TypedDict):
    """One image of a store of prepared volumes: the columns of :data:`mmh_ray.shards.INDEX_SCHEMA`, as NumPy arrays."""

    image_id: str
    subject: str | None
    session: str | None
    site: str | None
    sequence: str | None
    split: str | None
    shape: list[int] | None
    affine: np.ndarray | None
    registration: np.ndarray | None
    quality: float | None
    low: float | None
    high: float | None
    quantiles: np.ndarray | None
    tissues: np.ndarray | None
    steps: list[str] | None
    provenance: str | None
    status: str
    reason: str | None
    shard: str | None
    row_group: int | None


class LedgerRow(TypedDict):
    """Result of one image for one target: the columns of :data:`mmh_ray.bids.ledger.LEDGER_SCHEMA`."""

    image_id: str
    target: str | None
    site: str | None
    sequence: str | None
    source: str | None
    output: str | None
    status: str
    reason: str | None
    expected: str | None
    remedy: str | None
    flags: list[str] | None
    seconds: float | None
    finished: str | None
    input_sha256: str | None
    input_state: str | None
    model_hash: str | None
    settings_hash: str | None


def problem_of(row: Mapping[str, Any]) -> Problem | None:
    """Why the image of a manifest's or ledger's row has no result; None if it has one."""
    in_memory = row.get("problem")
    if isinstance(in_memory, Problem):
        return in_memory
    if not row.get("reason"):
        return None
    return Problem(row["reason"], row.get("expected"), row.get("remedy"))
