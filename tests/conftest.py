"""Fixtures for all tests: reproducible random numbers, real scans if available, one Ray cluster per session."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from mmh_ray.config import Config
    from mmh_ray.imaging.volume import Volume
    from mmh_ray.simulation.anatomy import Anatomy
    from tests.gcs_server import GcsServer
    from tests.ray_nodes import Nodes

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, so that with two workers none is left to run alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="session")
def _reports_taken_at_once() -> Iterator[None]:
    """Let Ray Train take reports more often: by default one in two seconds, most of the time of a short training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """Reset the log level of the package before and after each test.

    The command line sets it for the whole process, so it would carry over from other tests and from wider fixtures.
    """
    package = logging.getLogger("mmh_ray")
    package.setLevel(logging.NOTSET)
    yield
    package.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every run and every order of tests; torch is seeded only if already imported."""
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
    """A BIDS archive of real scans; skips the test if it is missing."""
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


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """A cluster with a head and as many nodes as the test's parameter says; the test may kill them."""
    from tests.ray_nodes import running_nodes

    with running_nodes(request.param) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a running S3 server (moto) on the loopback."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A second client of the server, with an empty bucket.

    Environment variables give the address and credentials of the server, as an operator would set them.
    """
    from tests.s3_files import environment

    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    client = pytest.importorskip("boto3").client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="bucket")
    for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    return client


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """A running server of Google Cloud Storage, on the loopback."""
    pytest.importorskip("gcp_storage_emulator", reason="no gcp-storage-emulator: pip install -e '.[dev]'")
    from tests.gcs_server import GcsServer

    server = GcsServer(tmp_path_factory.mktemp("credentials"))
    yield server
    server.stop()


@pytest.fixture
def gcs(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsServer:
    """The same with an empty bucket; environment variables give its address and credentials, as an operator's would."""
    for name, value in gcs_server.environment.items():
        monkeypatch.setenv(name, value)
    for key in gcs_server.keys(""):
        gcs_server.remove(key)
    return gcs_server


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
    """A page and the list of its errors and console messages; the list must be empty at the end of the test."""
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


@pytest.fixture(scope="session")
def spacing() -> float:
    """Voxel edge in mm of the shared anatomy."""
    return 6.0


@pytest.fixture(scope="session")
def anatomy(spacing: float) -> Anatomy:
    """A healthy person of ICBM-152 without a scalp."""
    from mmh_ray.simulation.anatomy import Person, simulate_anatomy

    return simulate_anatomy(Person(1), spacing)


@pytest.fixture(scope="session")
def clean(anatomy: Anatomy, spacing: float) -> np.ndarray:
    """The noise-free T1w rendering of the shared anatomy."""
    from mmh_ray.simulation.phantom import canonical

    return canonical(anatomy, "T1w", spacing)


@pytest.fixture(scope="session")
def plain_scan(anatomy: Anatomy, clean: np.ndarray) -> Volume:
    """A T1w scan of the shared anatomy, about 0 to 700: all that a batch job needs to run."""
    from mmh_ray.imaging.volume import Volume

    return Volume((700 * clean).astype(np.float32), anatomy.affine)


@pytest.fixture(scope="session")
def ball() -> np.ndarray:
    """An ellipsoid ``(16, 20, 14)`` bool that touches no border."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (16, 20, 14)], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.7


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """T1w and T2w on a coarse grid, one plane, no bias field, one actor."""
    from mmh_ray.config import Config, GridConfig, HarmonizeConfig, ModelConfig, PrepareConfig

    return Config(
        grid=GridConfig(6.0, (32, 40, 32)),
        prepare=PrepareConfig(n4=False),
        model=ModelConfig(channels=(8, 16), slab=1, distances=(1, 2), patch=2),
        harmonize=HarmonizeConfig(planes=("axial",), slots=1),
    )


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], Path]:
    """A function that writes the bundle of an untrained model with the given settings."""
    import torch

    from mmh_ray.models.bundle import save_bundle
    from mmh_ray.models.global_harmonizer import GlobalHarmonizer

    def make(config: Config) -> Path:
        folder = tmp_path_factory.mktemp("model") / "bundle"
        torch.manual_seed(0)
        quantiles = torch.linspace(0, 1, 257).repeat(2, 2, 1)
        model = GlobalHarmonizer(config.model, config.train, quantiles)
        save_bundle(folder, model, config, quantiles=quantiles, data_hash="d" * 64, training={"steps": 0})
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: Callable[[Config], Path], tiny_config: Config) -> Path:
    """The bundle of an untrained model of :func:`tiny_config`."""
    return make_bundle(tiny_config)


@pytest.fixture(scope="session")
def tiny_bundle_files(tiny_bundle: Path) -> dict[str, bytes]:
    """Files of the tiny bundle, as an actor gets them."""
    return {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
