"""The wheel has git's version and all files of the package, and runs without the checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

GIT = ("git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
NOT_CODE = (
    "models/weights/mmh-base/denoiser.safetensors",
    "models/weights/style.safetensors",
    "templates/report.html.j2",
)
"""Some of the files that are no Python, below the package."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed; it cannot import from the checkout that runs the tests."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current files of the checkout in a separate git repository without a tag."""
    for module in ("setuptools_scm", "pip"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[dev]'")
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("source")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=repository)
    for name in names.split("\0"):
        if (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, folder / name)
    run("git", "init", "--quiet", cwd=folder)
    commit_all(folder)
    return folder


def commit_all(folder: Path) -> None:
    run("git", "add", "--all", "--force", cwd=folder)
    run(*GIT, "commit", "--quiet", "--allow-empty", "--message", "all", cwd=folder)


def build_wheel(folder: Path, out: Path) -> Path:
    """Without the network: the build tools are installed already."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", out, folder, cwd=out.parent)
    (wheel,) = out.glob("*.whl")
    return wheel


def version_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())["Version"]


def scm_version(folder: Path) -> str:
    return run(sys.executable, "-m", "setuptools_scm", cwd=folder).strip()


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a clone without a tag."""
    return build_wheel(source, tmp_path_factory.mktemp("wheel") / "out")


def test_the_version_is_that_of_the_tag(source: Path, wheel: Path, tmp_path: Path) -> None:
    """Without a tag it counts commits; an sdist keeps its version; a folder without git has the fallback version."""
    commit = run("git", "rev-parse", "--short=8", "HEAD", cwd=source).strip()
    assert ".dev" in version_of(wheel)
    assert commit[:7] in version_of(wheel)
    tagged = tmp_path / "tagged"
    run("git", "clone", "--quiet", source, tagged, cwd=tmp_path)
    run("git", "tag", "v7.8.9", cwd=tagged)
    assert scm_version(tagged) == "7.8.9"
    build_sdist = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", build_sdist, tmp_path, cwd=tagged).splitlines()[-1]
    shutil.unpack_archive(tmp_path / name, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert version_of(build_wheel(unpacked, tmp_path / "of-sdist")) == "7.8.9"
    without_git = tmp_path / "without-git"
    shutil.copytree(source, without_git, ignore=shutil.ignore_patterns(".git", "*.egg-info", "build"))
    assert scm_version(without_git) == "0.1.0"


def test_the_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path) -> None:
    tracked = run("git", "ls-files", "mmh_ray", cwd=source).splitlines()
    with zipfile.ZipFile(wheel) as archive:
        packed = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(packed) == sorted(tracked)
    assert {f"mmh_ray/{name}" for name in NOT_CODE} <= set(packed)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A folder that a .pth file names is put behind, and .pth files in it are not read: mmh_ray of a checkout stays out.
    places = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    Path(site_packages, "dependencies.pth").write_text("\n".join(places) + "\n", encoding="utf-8")
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_runs_from_outside_the_checkout(installed: Path, wheel: Path, tmp_path: Path) -> None:
    from mmh_ray.simulation.anatomy import Person, simulate_anatomy
    from mmh_ray.simulation.phantom import canonical

    place = run(installed / "python", "-c", "import mmh_ray; print(mmh_ray.__file__)", cwd=tmp_path).strip()
    assert Path(place).is_relative_to(installed.parent)
    assert run(installed / "mmh", "--version", cwd=tmp_path).strip() == f"mmh-ray {version_of(wheel)}"
    anatomy = simulate_anatomy(Person(1), 6.0)
    scan = nib.Nifti1Image((700 * canonical(anatomy, "T1w", 6.0)).astype(np.float32), anatomy.affine)
    nib.save(scan, tmp_path / "sub-01_T1w.nii.gz")
    run(installed / "mmh", "harmonize", "sub-01_T1w.nii.gz", "out.nii.gz", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert nib.load(tmp_path / "out.nii.gz").shape == scan.shape
    assert version_of(wheel) in (tmp_path / "out.json").read_text(encoding="utf-8")
    told = run(installed / "mmh", "doctor", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "all that is needed works" in told
