"""Errors that say what was received, what was expected and what to do about it."""

from __future__ import annotations


class MMHError(Exception):
    """Base of every error a user can cause and mend.

    Parameters
    ----------
    received:
        What the program met.
    expected:
        What it needs instead.
    remedy:
        What the user can do.
    """

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        self.received, self.expected, self.remedy = received, expected, remedy
        super().__init__(f"{received}; expected {expected}. {remedy}")

    def __reduce__(self):  # so that it survives the way from a worker process to the driver
        return type(self), (self.received, self.expected, self.remedy)


class ConfigError(MMHError):
    """Unusable arguments or configuration (exit code 2)."""


class DataError(MMHError):
    """An image, a table or an archive that cannot be used as it is."""


class RefusedError(DataError):
    """An image that could be harmonized but must not be: it is not what the model is for."""


class ModelError(MMHError):
    """A model bundle that is missing, damaged or does not fit the data."""
