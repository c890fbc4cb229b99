"""Fixtures of all rooms: reproducible randomness, real scans where there are some, one Ray cluster per session."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: of two that run at a time, none is left to run alone in the end."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """The command line sets the level of the package's log for the whole process: no test may find another's, nor a wider fixture's."""
    package = logging.getLogger("mmh_ray")
    package.setLevel(logging.NOTSET)
    yield
    package.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every run and every order of tests; torch only where it is in use already."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  for libraries that draw from the global state
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_bids() -> Path:
    """A BIDS archive of real scans; skips where there is none."""
    path = Path(os.environ.get("MMH_REAL_BIDS", ROOT.parent / "shared/data/real-bids"))
    if not (path / "dataset_description.json").exists():
        pytest.skip(f"no real BIDS archive at {path}: name one in MMH_REAL_BIDS")
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, as the commands start it; shut down at the end of the session."""
    import ray

    from mmh_ray.distributed.cluster import connect

    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser of {', '.join(BROWSERS)} on the PATH: apt-get install chromium")
    arguments = [f"--{name}" for name in ("headless", *QUIET, "disable-sync")]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def quiet_page(browser: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page and what was complained of on it, to which a test may add; nothing may be left there in the end."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(5000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))
    yield page, complaints
    page.close()
    assert complaints == []
