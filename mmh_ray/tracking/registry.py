"""The model registry: bundles in under a name and an alias, and out again by either."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from mmh_ray import __version__
from mmh_ray.config import TrackingConfig
from mmh_ray.errors import ModelError
from mmh_ray.tracking.store import choose_uri, configure, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

GLOBAL, TARGET = "config.json", "target.json"
"""File by which the bundle of a global model, and of a target, is known."""
BUNDLE_HASH = "mmh.bundle_hash"
_MAKERS = {GLOBAL: "mmh train-global", TARGET: "mmh train-target"}
_FORMS = "a bundle folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH"
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/]+)|/(?P<version>\d+))")


def target_model_name(site: str) -> str:
    """Name of a site's target in the registry, ``mmh-target-SITE``; what no name or folder may hold becomes a hyphen."""
    return f"mmh-target-{re.sub(r'[^A-Za-z0-9_-]+', '-', site)}"


def register(run_id: str, bundle_dir: str | Path, name: str, config: TrackingConfig) -> str:
    """Register a bundle, global or target, as a new version of a model, move the alias there and return ``models:/NAME/VERSION``.

    What is registered is an MLflow pyfunc model from code (nothing pickled) with the bundle folder as its artifact.
    """
    import mlflow
    from mlflow.models import Model

    from mmh_ray.models.bundle import bundle_hash
    from mmh_ray.models.target_bundle import target_hash

    client, is_target = mlflow.MlflowClient(), Path(bundle_dir, TARGET).is_file()
    run = client.get_run(run_id)
    tags = {
        BUNDLE_HASH: (target_hash if is_target else bundle_hash)(bundle_dir),
        **{k: v for k, v in run.data.tags.items() if k.startswith("mmh.")},
    }
    logged = client.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id, tags=tags)
    with warnings.catch_warnings():
        # An example of input would be a scan of someone's; the signature says what a row holds.
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        # mlflow.pyfunc.log_model takes the run from the thread's active run and would end it; this is what it calls.
        info = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            registered_model_name=name,
            run_id=run_id,
            model_id=logged.model_id,
            tags=tags,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(Path(bundle_dir).absolute())},
            signature=_signature(),
            pip_requirements=[f"mmh-ray=={__version__}"],  # to guess them, MLflow would load the model in a new process
        )
    version = str(info.registered_model_version)
    client.set_registered_model_alias(name, config.alias, version)
    return f"models:/{name}/{version}"


def resolve_model(model: str, tracking: TrackingConfig) -> tuple[Path, str]:
    """Local bundle folder of a model, and the URI to cite: with the version for an alias, ``file://`` for a folder.

    Parameters
    ----------
    model:
        A bundle folder, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/RUN_ID/PATH``.

    Raises
    ------
    ModelError
        If there is no such folder, name, alias or version, the store cannot be reached, or what is there is no bundle.
    """
    return _resolve(model, tracking, GLOBAL)


def resolve_target(target: str, base: str | Path, tracking: TrackingConfig) -> tuple[Path, str]:
    """Local bundle folder of a target, and the URI to cite, as :func:`resolve_model`.

    Parameters
    ----------
    target:
        As there, or the name of a site: then ``adapters/SITE`` of the global model's folder ``base``, else the registered
        ``mmh-target-SITE``.
    """
    own = Path(base, "adapters", target_model_name(target).removeprefix("mmh-target-"))
    if (own / TARGET).is_file():
        return own, own.as_uri()
    if not _is_uri(target) and not Path(target).is_dir():
        target = f"models:/{target_model_name(target)}@{tracking.alias}"
    return _resolve(target, tracking, TARGET)


def _is_uri(model: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+:/", model) is not None


def _resolve(model: str, tracking: TrackingConfig, facts: str) -> tuple[Path, str]:
    """Folder with the file ``facts``, and the URI to cite."""
    if model.startswith("file:"):
        model = url2pathname(urlsplit(model).path)
    if not _is_uri(model):
        folder = Path(model).absolute()
        if not (folder / facts).is_file():
            received = f"{model}: no such folder" if not folder.is_dir() else f"{model}: a folder without {facts}"
            remedy = f"Check the path; `{_MAKERS[facts]}` makes bundles and registers them."
            raise ModelError(received, _FORMS, remedy)
        return folder, folder.as_uri()
    open_store(model, tracking)
    cited = version_uri(find_version(model)) if _REGISTERED.fullmatch(model) else model
    return _bundle_inside(_download(model, cited), model, facts), cited


def open_store(model: str, tracking: TrackingConfig) -> None:
    """Choose the store; ModelError where a SQLite store is not there, which asking MLflow would create."""
    uri = choose_uri(tracking)
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        remedy = "Name the store in tracking.uri or MLFLOW_TRACKING_URI, or train a model first."
        raise ModelError(f"{model}, but there is no store at {uri}", "an MLflow store that has the model", remedy)
    configure(tracking)


def find_version(model: str) -> ModelVersion:
    """The registered version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; the store is open.

    Raises
    ------
    ModelError
        If it is no such URI or the registry does not know it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    parts = _REGISTERED.fullmatch(model)
    if parts is None:
        remedy = "Register a model with `mmh train-global`."
        raise ModelError(model, "a registered model, models:/NAME@ALIAS or models:/NAME/VERSION", remedy)
    name, alias, client = parts["name"], parts["alias"], mlflow.MlflowClient()
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, parts["version"])
    except MlflowException as error:
        raise _unknown(model, error) from error


def version_uri(version: ModelVersion) -> str:
    """The URI to cite."""
    return f"models:/{version.name}/{version.version}"


def _unknown(model: str, error: Exception) -> ModelError:
    """The error for a name, alias or version that is not there, with those that are."""
    import mlflow
    from mlflow.exceptions import MlflowException

    store, name = mlflow.get_tracking_uri(), model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    received = f"{model} at {store}: {' '.join(str(error).split())[:300]}"
    try:
        entry = mlflow.MlflowClient().get_registered_model(name)
    except MlflowException:
        remedy = (
            "Check the name, and the store in tracking.uri or MLFLOW_TRACKING_URI; `mmh train-global` and `mmh train-target` "
            "register models."
        )
        return ModelError(received, "a registered model", remedy)
    aliases = ", ".join(f"models:/{name}@{alias} (version {version})" for alias, version in entry.aliases.items())
    newest = max((int(version.version) for version in entry.latest_versions), default=0)
    expected = f"an alias of {name} ({aliases or 'there are none'}) or a version (the newest is {newest or 'missing'})"
    return ModelError(received, expected, "Use one of these, or set the alias in MLflow.")


def _download(model: str, uri: str) -> Path:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        received = f"{model} at {mlflow.get_tracking_uri()}: {' '.join(str(error).split())[:300]}"
        raise ModelError(received, _FORMS, "Check the URI, and that the artifacts can be reached from here.") from error


def _bundle_inside(folder: Path, model: str, facts: str) -> Path:
    """The bundle in the artifacts of a model, or the artifacts themselves when they are one."""
    if (folder / facts).is_file():
        return folder
    description = folder / "MLmodel"
    if description.is_file():
        flavor = yaml.safe_load(description.read_text())["flavors"].get("python_function", {})
        bundle = folder / flavor.get("artifacts", {}).get("bundle", {}).get("path", "")
        if (bundle / facts).is_file():
            return bundle
    remedy = f"Use a model that `{_MAKERS[facts]}` registered."
    raise ModelError(
        f"{model}: holds no such bundle", f"a model with a bundle ({facts} and weights) among its artifacts", remedy
    )


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    def columns(names: str, required: bool = True) -> list[Any]:
        return [ColSpec("string", name, required=required) for name in names.split()]

    inputs = Schema([*columns("path sequence"), *columns("mask output", required=False)])
    return ModelSignature(inputs=inputs, outputs=Schema([*columns("output status reason")]))
