"""configs/cluster/: every recipe is parsed, and its fields and commands are checked.

No package registry has the schema of KubeRay's resources. So the important fields are checked against the lists below,
with names from KubeRay's API reference, ray.io/v1.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmh_ray.cli import parse
from mmh_ray.config import load_config

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "configs/cluster"
JOBS = ("rayjob.yaml", "rayjob-harmonize.yaml")
RESOURCES = ("raycluster.yaml", *JOBS)

CLUSTER_FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headServiceAnnotations",
    "suspend",
    "managedBy",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
AUTOSCALER_FIELDS = {
    "resources",
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "idleTimeoutSeconds",
    "upscalingMode",
    "version",
}
HEAD_FIELDS = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
WORKER_FIELDS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "idleTimeoutSeconds",
    "numOfHosts",
    "rayStartParams",
    "scaleStrategy",
    "suspend",
    "template",
}
JOB_FIELDS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "submitterPodTemplate",
    "metadata",
    "clusterSelector",
    "submitterConfig",
    "managedBy",
    "deletionStrategy",
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "submissionMode",
    "entrypointResources",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes",
    "suspend",
}
QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?")


def read(name: str) -> dict[str, Any]:
    """Read a recipe, and refuse repeated keys, of which YAML would silently keep one."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{name}: a key given twice among {keys}"
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return yaml.load((CLUSTER / name).read_text(encoding="utf-8"), Strict)


def cluster_of(name: str) -> dict[str, Any]:
    """The cluster's part of a recipe."""
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups_of(name: str) -> list[dict[str, Any]]:
    """Head and workers."""
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("name", RESOURCES)
def test_a_cluster_has_the_fields_of_kuberay(name: str) -> None:
    recipe, cluster = read(name), cluster_of(name)
    assert recipe["apiVersion"] == "ray.io/v1"
    assert recipe["kind"] == ("RayCluster" if name == "raycluster.yaml" else "RayJob")
    assert set(cluster) <= CLUSTER_FIELDS
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_FIELDS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups_of(name):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", RESOURCES)
def test_every_pod_has_its_image_resources_and_volumes(name: str) -> None:
    for group in groups_of(name):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"].startswith("YOUR-REGISTRY/mmh-ray:")
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], (
            "a pod that takes more than it asked for is the first to go"
        )
        assert all(QUANTITY.fullmatch(str(amount)) for amount in resources["limits"].values())
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["MLFLOW_TRACKING_URI"].startswith("http://"), "a file would lie in a pod, and go with it"
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert str(ports["metrics"]) == group["rayStartParams"]["metrics-export-port"]


@pytest.mark.parametrize("name", RESOURCES)
def test_no_recipe_holds_a_secret(name: str) -> None:
    text = (CLUSTER / name).read_text(encoding="utf-8")
    assert not re.search(r"(KEY|SECRET|TOKEN|PASSWORD)\w*,? value:", text)


def test_the_permanent_cluster_scales_automatically() -> None:
    cluster = cluster_of("raycluster.yaml")
    assert cluster["enableInTreeAutoscaling"] is True
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] < group["maxReplicas"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_one_that_kueue_admits(name: str) -> None:
    recipe = read(name)
    assert set(recipe["spec"]) <= JOB_FIELDS
    assert recipe["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert recipe["spec"]["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in recipe["spec"]
    assert "enableInTreeAutoscaling" not in cluster_of(name)
    assert all(isinstance(value, str) for value in recipe["spec"]["metadata"].values())


@pytest.mark.parametrize(("name", "command"), [("rayjob.yaml", "train-global"), ("rayjob-harmonize.yaml", "harmonize")])
def test_a_jobs_entrypoint_is_a_command_of_ours(name: str, command: str, tmp_path: Path) -> None:
    python, script, *arguments = shlex.split(read(name)["spec"]["entrypoint"])
    assert python == "python"
    assert f'run(["{command}", *sys.argv[1:]])' in (ROOT / script.removeprefix("/app/")).read_text(encoding="utf-8")
    (tmp_path / "bids").mkdir()
    here = [text.replace("/app/", f"{ROOT}/").replace("/data/", f"{tmp_path}/") for text in arguments]
    invocation = parse([command, *here])
    config = load_config(invocation.config, invocation.overrides)
    if command == "train-global":
        gpus = sum(
            group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
            for group in cluster_of(name)["workerGroupSpecs"]
        )
        assert config.train.workers == gpus
        assert config.train.storage.startswith("s3://")


def test_the_recipes_ray_is_one_that_the_package_takes() -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    versions = {cluster_of(name)["rayVersion"] for name in RESOURCES}
    versions |= set(re.findall(r"^ARG RAY_VERSION=(.+)$", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), re.M))
    (version,) = versions
    (ray,) = [found for text in requires("mmh-ray") or () if (found := Requirement(text)).name == "ray"]
    assert version in ray.specifier


def test_image_and_recipes_are_of_the_release_and_of_the_pinned_ray() -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG VERSION=(.+)$", dockerfile, re.M) == [release]
    assert apptainer_arguments()["VERSION"] == release
    for name in RESOURCES:
        for group in groups_of(name):
            (container,) = group["template"]["spec"]["containers"]
            assert container["image"] == f"YOUR-REGISTRY/mmh-ray:{release}"
    assert f"-t YOUR-REGISTRY/mmh-ray:{release} ." in dockerfile
    (ray,) = re.findall(r"^ARG RAY_VERSION=(.+)$", dockerfile, re.M)
    assert f"ray=={ray}" in (ROOT / "constraints.txt").read_text().splitlines()


def linter(name: str) -> str:
    """A program that the development tools install."""
    beside_python = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    path = shutil.which(name, path=beside_python)
    if path is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return path


def lint(*command: str | Path, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_passes_its_linter() -> None:
    lint(linter("hadolint"), CLUSTER / "Dockerfile")


def test_shell_scripts_pass_their_linter() -> None:
    shellcheck = linter("shellcheck")
    lint(shellcheck, "--exclude=SC1091", CLUSTER / "slurm.sh")  # the environment that it enters is not there
    for name in ("%post", "%environment", "%runscript", "%test"):
        lint(shellcheck, "--shell=sh", "-", text="\n".join(apptainer_sections()[name]))


APPTAINER_SECTIONS = {
    "%arguments",
    "%environment",
    "%files",
    "%help",
    "%labels",
    "%post",
    "%runscript",
    "%test",
}
"""Of the sections that Apptainer knows, those that are used."""


def apptainer_sections() -> dict[str, list[str]]:
    """Lines of each section of the recipe; those before the first are the header."""
    sections: dict[str, list[str]] = {"header": []}
    lines = sections["header"]
    for line in (CLUSTER / "apptainer.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            assert line not in sections, f"{line} twice"
            lines = sections[line] = []
        elif line.strip() and not line.startswith("#"):
            lines.append(line)
    return sections


def apptainer_arguments() -> dict[str, str]:
    """Build arguments with their defaults."""
    return dict(line.strip().split("=") for line in apptainer_sections()["%arguments"])


def test_the_apptainer_recipe_has_what_apptainer_knows() -> None:
    sections = apptainer_sections()
    assert set(sections) == {"header", *APPTAINER_SECTIONS}
    header = dict(line.split(": ") for line in sections["header"])
    assert header == {"Bootstrap": "docker", "From": "python:3.11-slim-bookworm"}
    used = set(re.findall(r"\{\{ (\w+) \}\}", (CLUSTER / "apptainer.def").read_text(encoding="utf-8")))
    assert used == set(apptainer_arguments())
    assert [line.strip() for line in sections["%runscript"]] == ['exec mmh "$@"']


def test_both_images_get_the_same_files() -> None:
    copied: set[str] = set()
    for word, rest in instructions():
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            copied.update(sources)
    pairs = [line.split() for line in apptainer_sections()["%files"]]
    assert {source for source, _ in pairs} == copied
    assert all(target == f"/app/{source}" for source, target in pairs)


def test_both_images_tell_derivatives_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable from which `GeneratedBy` is made."""
    from mmh_ray.provenance import container

    assert any(word == "ENV" and "MMH_IMAGE=${IMAGE}" in rest for word, rest in instructions())
    assert any(line.strip().startswith("export MMH_IMAGE=") for line in apptainer_sections()["%environment"])
    monkeypatch.setenv("MMH_IMAGE", "mmh-ray:1")
    found = container()
    assert found is not None
    assert found["Tag"] == "mmh-ray:1"


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_chosen_by_a_build_argument() -> None:
    found = instructions()
    words = [word for word, _ in found]
    assert set(words) <= {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY"}
    base = words.index("FROM")
    assert found[base][1] == "rayproject/ray:${RAY_VERSION}-py311-${DEVICE}"
    assert ("ARG", "DEVICE=gpu") in found[:base]
    assert ("ARG", "DEVICE") in found[base:], "an argument from before FROM is empty after it"


def test_the_image_gets_what_it_needs_and_nothing_else() -> None:
    """Every copied file exists and is sent to the builder, and no other file is."""
    patterns = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert patterns[0] == "*"
    sent = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied: set[str] = set()
    for word, rest in instructions():
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            copied.update(sources)
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    assert any(fnmatch.fnmatch("mmh_ray/__pycache__", pattern) for pattern in patterns if not pattern.startswith("!"))


def test_slurm_is_valid_shell_and_its_runs_outlive_the_job() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.index("export MLFLOW_TRACKING_URI=") < text.index("ray start"), "the head hands its environment to jobs"
    chosen = re.search(r"^export MLFLOW_TRACKING_URI=.*$", text, re.M)
    assert chosen is not None
    show = f'{chosen[0]}; echo "$MLFLOW_TRACKING_URI"'
    for given, expected in ((None, "sqlite:////shared/me/mlflow.db"), ("http://mlflow:5000", "http://mlflow:5000")):
        environment = {"SLURM_SUBMIT_DIR": "/shared/me"} | ({"MLFLOW_TRACKING_URI": given} if given else {})
        done = subprocess.run(["bash", "-uc", show], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_checkpoints_stay_out_of_git_and_of_uploads() -> None:
    """`ray job submit --working-dir .` leaves out what .gitignore names."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/runs/", "/demo/", ".venv/", "/mlruns/", "/mlflow.db"} <= set(ignored)
