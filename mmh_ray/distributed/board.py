"""Where the first training worker pins its metrics for the driver; a module of its own, so that its process stays small."""

from __future__ import annotations

Row = tuple[int, dict[str, float]]


class Board:
    """An actor that outlives workers that die."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def post(self, step: int, metrics: dict[str, float]) -> None:
        """Pin one step's metrics."""
        self.rows.append((step, metrics))

    def take(self) -> list[Row]:
        """Everything pinned since the last call."""
        rows, self.rows = self.rows, []
        return rows
