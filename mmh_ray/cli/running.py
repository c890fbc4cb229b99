"""Handles what all commands share: exit codes, error messages, logging."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from mmh_ray.errors import ConfigError, MMHError

log = logging.getLogger(__name__)

DONE = 0
FAILED = 1
"""Something failed: an image, a comparison, a store."""
UNUSABLE = 2
"""Invalid arguments or settings."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM."""

TABLE_WIDTH = 120
"""Width in characters of a table that is not printed to a terminal."""

NOISY_LOGGERS = ("alembic", "fsspec", "git", "matplotlib", "mlflow", "nibabel", "PIL", "py4j", "ray", "urllib3")
NOISY_MODULES = r"(alembic|diffusers|huggingface_hub|mlflow|nibabel|nilearn|pydantic|ray|timm|torch|torchvision)(\.|$)"


_results: TextIO | None = None


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Keep stdout for :func:`results`; other output, such as Ray's notices about lost nodes, goes to stderr."""
    global _results
    _results = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results = None


def results() -> TextIO:
    """Stream for the results of a command."""
    return sys.stdout if _results is None else _results


def show(result: Any) -> None:
    """Print the result of a command: text unchanged, anything else as JSON."""
    text = result if isinstance(result, str) else json.dumps(result, indent=2)
    print(text, file=results())


def explained(command: str, error: MMHError) -> int:
    """Print an error; return its exit code."""
    log.debug("raised here:", exc_info=True)
    # An error from a Ray worker has the original error, without the remote traceback, as its cause.
    original = getattr(error, "cause", error)
    print(f"mmh {command}: {original}", file=sys.stderr)
    return UNUSABLE if isinstance(error, ConfigError) else FAILED


def end_ray() -> None:
    """End Ray, if it was started, while a second SIGTERM is still ignored.

    At the exit of the process, a second SIGTERM could interrupt this, and Ray would abort.
    """
    if "mmh_ray.distributed.cluster" in sys.modules:
        from mmh_ray.distributed.cluster import disconnect

        disconnect()


def set_up_logging(verbose: bool) -> None:
    """Log plain lines with the time to stderr; libraries log only warnings and errors."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("mmh_ray").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        return
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow sets its own levels when it is imported
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("nibabel").setLevel(logging.ERROR)  # it warns of every odd header
    warnings.filterwarnings("ignore", module=NOISY_MODULES)


def counts_as_text(counts: dict[str, int]) -> str:
    """For example `3 done, 1 failed`; `none` if there are no counts."""
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    return ", ".join(parts) or "none"
