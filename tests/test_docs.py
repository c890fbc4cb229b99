"""Checks the documentation: the command line accepts every command, code on the pages runs, and the site builds.

All fenced blocks of the pages are read. A line that starts with `mmh ` or `python jobs/` must parse, with all its
settings. Blocks of Python are run in the order of the page, and so are blocks of commands below the comment
`<!-- run -->`. Both run in a folder with a small simulated scan.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from string import Template

import nibabel as nib
import numpy as np
import pytest

from mmh_ray.cli import main, parse
from mmh_ray.config import load_config
from mmh_ray.evaluation.metrics.registry import METRICS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
RESULTS = sorted((ROOT / "benchmarks").glob("*.md"))
CARD = ROOT / "mmh_ray/models/weights/mmh-base/MODEL_CARD.md"
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(
    r"(?P<comment><!--[^\n]*-->\n)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
ASSIGNMENT = re.compile(r"^(?:export )?([A-Z_]+)=(\"[^\"]*\"|'[^']*'|\S+)", re.MULTILINE)
COMMENTS = {"", "<!-- run -->", "<!-- needs OUT -->"}
SHELL = ("", "bash", "console", "shell", "sh")
SPACING_MM = 6.0


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    comment: str

    @property
    def variables(self) -> dict[str, str]:
        """Variables that a block for the shell sets."""
        if self.language not in SHELL:
            return {}
        return {name: "".join(shlex.split(value)) for name, value in ASSIGNMENT.findall(self.text)}

    def commands(self, variables: dict[str, str]) -> list[list[str]]:
        """Arguments of each `mmh` command of a shell block, split as the shell does; a job counts as its command.

        `variables` are those that the page sets; names of other variables are kept.
        """
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = []
        for line in lines:
            words = Template(line.strip().removeprefix("$ ")).safe_substitute(variables)
            start = re.match(r"mmh |.*\bpython jobs/(?P<job>\w+)\.py ", words)
            if start is None:
                continue
            job = start["job"]
            name = [] if job is None else [{"build_manifest": "manifest"}.get(job, job.replace("_", "-"))]
            commands.append(name + shlex.split(words[start.end() :], comments=True))
        return commands


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, match["language"], textwrap.dedent(match["text"]), (match["comment"] or "").strip())
        for match in FENCE.finditer(text)
    ]


def commands_of(page: Path, comment: str | None = None) -> list[tuple[Path, list[str]]]:
    """The commands of a page, or only those in blocks below one comment."""
    blocks = blocks_of(page)
    variables: dict[str, str] = {}
    for block in blocks:
        variables |= block.variables
    chosen = [block for block in blocks if comment in (None, block.comment)]
    return [(page, words) for block in chosen for words in block.commands(variables)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [command for page in PAGES for command in commands_of(page)]
PYTHON_PAGES = sorted({block.page for block in BLOCKS if block.language == "python" and block.page.name != "README.md"})
RUNNABLE = [command for page in PAGES for command in commands_of(page, "<!-- run -->")]


def case_id(case: tuple[Path, list[str]]) -> str:
    page, words = case
    return f"{page.name}: mmh {' '.join(words)}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a copy of the repository's settings."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.fast
def test_there_are_commands_and_code_to_check() -> None:
    assert len(COMMANDS) > 20
    assert len(RUNNABLE) > 2
    assert len(PYTHON_PAGES) > 2
    assert {block.comment for block in BLOCKS if block.comment in COMMENTS} == COMMENTS


@pytest.mark.fast
@pytest.mark.parametrize("case", COMMANDS, ids=case_id)
def test_mmh_accepts_every_command_on_a_page(case: tuple[Path, list[str]], folder: Path) -> None:
    words = case[1]
    for word in words[1:]:
        place = word.partition("=")[2] or word  # of NAME=FOLDER
        if not place.startswith("-") and "://" not in place and not Path(place).exists():
            Path(place).mkdir(parents=True)  # the parser requires inputs to exist
    invocation = parse(words)
    load_config(invocation.config, invocation.overrides)


@pytest.mark.fast
@pytest.mark.parametrize("words", [["harmonise", "a", "b"], ["harmonize", "configs", "b", "--spaces", "native"]])
def test_a_wrong_command_would_be_noticed(words: list[str], folder: Path) -> None:
    with pytest.raises(SystemExit):
        parse(words)


@pytest.fixture(scope="module")
def scan() -> nib.Nifti1Image:
    """A T1w of a simulated brain without anything around it."""
    from mmh_ray.simulation.anatomy import Person, simulate_anatomy
    from mmh_ray.simulation.phantom import SITES, render

    person = simulate_anatomy(Person(5), SPACING_MM)
    data = render(person, SITES[0], "T1w", np.random.default_rng(0), SPACING_MM) * person.brain
    return nib.Nifti1Image(data.astype(np.float32), person.affine)


@pytest.fixture
def folder_with_scans(folder: Path, scan: nib.Nifti1Image) -> Path:
    """A folder with the files that the pages mention: a scan under two names, its brain mask, and a ledger."""
    import pandas as pd

    nib.save(scan, folder / "sub-01_T1w.nii.gz")
    nib.save(scan, folder / "scan.nii.gz")
    inside = (np.asarray(scan.dataobj) > 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(inside, scan.affine), folder / "brain.nii.gz")
    (folder / "OUT").mkdir()
    rows = {"image_id": ["sub-01_T1w"], "status": ["failed"], "reason": ["unreadable"]}
    pd.DataFrame(rows).to_parquet(folder / "OUT/ledger.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_its_first_line_to_its_last(page: Path, folder_with_scans: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNNABLE, ids=case_id)
def test_a_command_marked_to_run_succeeds(
    case: tuple[Path, list[str]], folder_with_scans: Path, request: pytest.FixtureRequest
) -> None:
    words = case[1]
    needs_ray = words[0] != "harmonize"  # all marked harmonize commands take a single file
    if needs_ray:
        request.getfixturevalue("ray_cluster")
    assert main(words) == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_keeps_no_output(path: Path, folder: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names: dict[str, object] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    assert names["after"].shape == names["before"].shape  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_page(site: Path) -> None:
    pages = [path.stem for path in (ROOT / "docs").glob("*.md")]
    assert all((site / f"{page}.html").is_file() for page in pages)
    api = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="mmh_ray.config._' not in api
    for name in ("mmh_ray.quality.comparison.compare", "mmh_ray.errors.MMHError", "mmh_ray.config.TrainConfig"):
        assert f'id="{name}"' in api


@pytest.mark.slow
def test_the_site_loads_nothing_from_other_servers(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?:|<link[^>]*\brel=\"?stylesheet\"?[^>]*href=\"?https?:"
    )
    for page in site.rglob("*.html"):
        assert loaded.search(page.read_text(encoding="utf-8")) is None, page


@pytest.mark.fast
@pytest.mark.parametrize("page", [*PAGES, CARD, *RESULTS], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    file_names = re.findall(r"`(?:python )?([a-z_]+(?:/[a-z_]+)*\.py)\b", text)
    homes = (ROOT, ROOT / "mmh_ray", ROOT / "benchmarks")
    missing = [name for name in file_names if not any((home / name).is_file() for home in homes)]
    assert missing == []


@pytest.mark.fast
def test_the_architecture_page_names_many_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(set(re.findall(r"`[a-z_]+(?:/[a-z_]+)*\.py`", text))) > 20


@pytest.mark.fast
@pytest.mark.parametrize("page", [*PAGES, CARD, *RESULTS], ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    places = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [place for place in places if place and not (page.parent / place).exists()]
    assert missing == []


@pytest.mark.fast
def test_every_metric_is_on_the_page_about_them() -> None:
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []


@pytest.mark.fast
def test_every_benchmark_is_on_a_page_and_every_page_is_in_the_table() -> None:
    overview = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    pages = {path.name for path in RESULTS} - {"README.md"}
    assert {target for target in LINK.findall(overview) if "/" not in target} == pages
    texts = "".join(page.read_text(encoding="utf-8") for page in RESULTS)
    commands = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    unnamed = [path.name for path in commands if path.name not in texts and f"benchmarks.{path.stem}" not in texts]
    assert unnamed == []
