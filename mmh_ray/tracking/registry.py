"""The model registry: registers bundles under a name and an alias, and finds them by name, alias or version."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from mmh_ray import __version__
from mmh_ray.config import Config, TrackingConfig
from mmh_ray.errors import ModelError
from mmh_ray.files import is_inside, read_bytes
from mmh_ray.models.shipped import BASE_MODEL, shipped_bundle
from mmh_ray.object_store import fetch_bundle, is_remote
from mmh_ray.tracking.descriptions import describe
from mmh_ray.tracking.outage import retry_while_unreachable
from mmh_ray.tracking.package_wheel import build_wheel
from mmh_ray.tracking.runs import finish, mark_failed, start_run
from mmh_ray.tracking.store import choose_uri, configure, mlflow_client, sqlite_file, without_credentials
from mmh_ray.yaml_text import MOST_BYTES, load_yaml

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature

GLOBAL = "config.json"
"""File that identifies the bundle of a global model."""
TARGET = "target.json"
"""File that identifies the bundle of a target."""
BUNDLE_HASH = "mmh.bundle_hash"
"""Tag of a version: hash of its bundle."""
SITE = "mmh.site"
"""Tag of a version of a target: its site."""
BASE = "base"
"""Key in the ``model_config`` of a registered target: a global model to use instead of the recorded one."""
MAY_NAME_FILES = "files"
"""Key in the ``model_config`` of a registered model: whether rows may name files on the machine that runs it."""
_COMMANDS = {GLOBAL: "mmh train-global", TARGET: "mmh train-target"}
_URI_FORMS = "a bundle folder, s3://BUCKET/BUNDLE, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH"
_NO_ANSWER = "INTERNAL_ERROR"
"""MLflow's error code for a server that cannot be reached, or fails."""
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/]+)|/(?P<version>\d+))")


def target_model_name(site: str) -> str:
    """Name of a site's target in the registry, ``mmh-target-SITE``; unsafe characters become hyphens."""
    return f"mmh-target-{re.sub(r'[^A-Za-z0-9_-]+', '-', site)}"


def register(run_id: str, bundle_dir: str | Path, name: str, config: TrackingConfig) -> str:
    """Register a bundle, global or target, as a new version of a model, and move the alias to it.

    The registered model is an MLflow pyfunc model from code (nothing pickled), with the bundle folder as its artifact.

    Returns
    -------
    ``models:/NAME/VERSION``.

    Raises
    ------
    ModelError
        If the bundle cannot be read, or the name belongs to another site's target.
    """
    import mlflow
    from mlflow.models import Model

    from mmh_ray.models.bundle import bundle_hash
    from mmh_ray.models.target.bundle import target_hash, target_site

    client = mlflow_client()
    is_target = Path(bundle_dir, TARGET).is_file()
    run = retry_while_unreachable(lambda: client.get_run(run_id))
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("mmh.")}
    if is_target:
        tags |= {BUNDLE_HASH: target_hash(bundle_dir), SITE: target_site(bundle_dir)}
        _check_owner(client, name, tags[SITE])
    else:
        tags[BUNDLE_HASH] = bundle_hash(bundle_dir)
    model_config: dict[str, Any] = {MAY_NAME_FILES: False}
    if is_target:
        model_config[BASE] = None
    logged = client.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id, tags=tags)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        # An input example would be a person's scan; the signature describes the rows.
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        wheel = build_wheel(scratch)
        # mlflow.pyfunc.log_model calls this too, but uses the thread's active run, and would end it.
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
            model_config=model_config,
            code_paths=[str(wheel)],
            # The wheel has the requirements; to guess them, MLflow would load the model in a new process.
            pip_requirements=[f"code/{wheel.name}"],
        )
    version = str(info.registered_model_version)
    describe(name, version, Path(bundle_dir), is_target)
    client.set_registered_model_alias(name, config.alias, version)
    return f"models:/{name}/{version}"


def register_shipped(config: Config) -> str:
    """Register the shipped model unless the store already has it, and return its ``models:/mmh-base/VERSION``.

    This makes it possible to store and compare its evaluations like those of any other model.
    """
    from mmh_ray.models.bundle import bundle_hash

    configure(config.tracking)
    bundle = shipped_bundle(BASE_MODEL)
    assert bundle is not None
    shipped_hash = bundle_hash(bundle)
    for version in mlflow_client().search_model_versions(f"name='{BASE_MODEL}'"):
        if version.tags.get(BUNDLE_HASH) == shipped_hash:
            return version_uri(version)
    run_id = start_run(config, BASE_MODEL, None, {"shipped_with": __version__})
    try:
        uri = register(run_id, bundle, BASE_MODEL, config.tracking)
    except BaseException:
        mark_failed(run_id)
        raise
    finish(run_id)
    return uri


def _check_owner(client: Any, name: str, site: str) -> None:
    """ModelError if a registered model with this name is the target of another site."""
    newest = client.search_model_versions(f"name='{name}'", max_results=1, order_by=["version_number DESC"])
    owner = newest[0].tags.get(SITE, site) if newest else site
    if owner != site:
        received = f"target of site {site!r} to register as {name}, which is the target of site {owner!r}"
        remedy = "Rename the site in the archive, and train its target again."
        raise ModelError(received, "sites with different names in the registry", remedy)


def resolve_model(model: str, tracking: TrackingConfig) -> tuple[Path, str]:
    """Local bundle folder of a model, and the URI to cite: with the version for an alias, ``file://`` for a folder.

    Parameters
    ----------
    model:
        ``mmh-base``, the shipped model; a bundle folder; its URI in an object store, which is copied to a temporary
        folder; ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/RUN_ID/PATH``.

    Raises
    ------
    ModelError
        If the folder, name, alias or version does not exist or is not a bundle, or the store cannot be reached.
    """
    shipped = shipped_bundle(model)
    return _resolve(model, tracking, GLOBAL) if shipped is None else (shipped, model)


def resolve_target(target: str, base: str | Path, tracking: TrackingConfig) -> tuple[Path, str]:
    """Local bundle folder of a target, and the URI to cite, as :func:`resolve_model`.

    Parameters
    ----------
    target:
        As there, or the name of a site. A site's target is searched in ``adapters/SITE`` of the global model's folder
        ``base``, then in the registry as ``mmh-target-SITE``. It must be a target of this site.
    """
    model_name = target_model_name(target)
    beside_model = Path(base, "adapters", model_name.removeprefix("mmh-target-"))
    if os.path.isfile(beside_model / TARGET):  # pathlib raises where a name is too long
        return _of_site(target, beside_model, beside_model.as_uri())
    if _is_uri(target) or os.path.isdir(target):
        return _resolve(target, tracking, TARGET)
    folder, uri = _resolve(f"models:/{model_name}@{tracking.alias}", tracking, TARGET)
    return _of_site(target, folder, uri)


def _of_site(site: str, folder: Path, uri: str) -> tuple[Path, str]:
    """Folder and URI of a target; ModelError if it is of another site, as two sites may have the same safe name."""
    from mmh_ray.models.target.bundle import target_site

    site_of_target = target_site(folder)
    if site_of_target != unicodedata.normalize("NFC", site):
        remedy = "Give the target's bundle folder or models:/NAME/VERSION."
        raise ModelError(f"{uri}, the target of site {site_of_target!r}", f"a target of site {site!r}", remedy)
    return folder, uri


def resolve_recorded(uri: str, tracking: TrackingConfig, base: str | None = None) -> tuple[Path, str]:
    """Find the global model that is recorded in a target, as :func:`resolve_model`.

    Parameters
    ----------
    uri:
        The recorded URI. It is untrusted: only the shipped model, or a registered model in the caller's store, is used.
    base:
        A model to use instead, in any form that :func:`resolve_model` accepts.
    """
    if base is not None:
        return resolve_model(base, tracking)
    is_registered = _REGISTERED.fullmatch(uri) is not None
    is_shipped = shipped_bundle(uri) is not None
    if not is_registered and not is_shipped:
        received = f"global model {uri[:300]!r}, recorded in a target"
        remedy = f"Give its folder: mlflow.pyfunc.load_model(URI, model_config={{'{BASE}': FOLDER}})."
        raise ModelError(received, "a registered model", remedy)
    return resolve_model(uri, tracking)


def resolve_recorded_target(uri: str, tracking: TrackingConfig) -> tuple[Path, str]:
    """Find the target that is recorded in a sidecar: a registered one or a local folder, nothing else."""
    if not (_REGISTERED.fullmatch(uri) or uri.startswith("file:///")):
        received = f"target {uri[:300]!r}, recorded in a sidecar"
        raise ModelError(received, "a registered model or a folder", "Harmonize again with the target.")
    return _resolve(uri, tracking, TARGET)


def _is_uri(model: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+:/", model) is not None


def _resolve(model: str, tracking: TrackingConfig, facts: str) -> tuple[Path, str]:
    """Local folder with the file ``facts``, and the URI to cite."""
    if model.startswith("file:"):
        model = url2pathname(urlsplit(model).path)
    if not _is_uri(model):
        folder = Path(model).absolute()
        if not os.path.isfile(folder / facts):
            received = f"{model}: no such folder" if not os.path.isdir(folder) else f"{model}: a folder without {facts}"
            remedy = f"Check the path; `{_COMMANDS[facts]}` makes bundles and registers them."
            raise ModelError(received, _URI_FORMS, remedy)
        return folder, folder.as_uri()
    if is_remote(model):
        return fetch_bundle(model, facts)
    open_store(model, tracking)
    cited = model
    if _REGISTERED.fullmatch(model):
        version = find_version(model)
        cited = version_uri(version)
    artifacts = download(model, _URI_FORMS, artifact_uri=cited)
    return bundle_inside(artifacts, model, facts), cited


def open_store(model: str, tracking: TrackingConfig) -> None:
    """Choose the store; ModelError if its SQLite file does not exist, as MLflow would create it."""
    uri = choose_uri(tracking)
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        remedy = "Set tracking.uri or MLFLOW_TRACKING_URI to the store, or train a model first."
        raise ModelError(f"{model}, but there is no store at {uri}", "an MLflow store that has the model", remedy)
    configure(tracking)


def find_version(model: str) -> ModelVersion:
    """The registered version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in the configured store.

    Raises
    ------
    ModelError
        If the URI has another form, or the model is not registered.
    """
    from mlflow.exceptions import MlflowException

    parts = _REGISTERED.fullmatch(model)
    if parts is None:
        remedy = "Register a model with `mmh train-global`."
        raise ModelError(model, "a registered model, models:/NAME@ALIAS or models:/NAME/VERSION", remedy)
    client = mlflow_client()
    try:
        if parts["alias"]:
            return client.get_model_version_by_alias(parts["name"], parts["alias"])
        return client.get_model_version(parts["name"], parts["version"])
    except MlflowException as error:
        raise _unknown(model, error) from error


def version_uri(version: ModelVersion) -> str:
    """The URI to cite."""
    return f"models:/{version.name}/{version.version}"


def _unknown(model: str, error: MlflowException) -> ModelError:
    """Error for an unknown name, alias or version, with those that exist; or for a store that does not answer."""
    import mlflow
    from mlflow.exceptions import MlflowException

    store = without_credentials(mlflow.get_tracking_uri())
    name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    received = f"{model} at {store}: {' '.join(without_credentials(error).split())[:300]}"
    if error.error_code == _NO_ANSWER:  # another request would wait for MLflow's retries again
        remedy = "Start the store, or set another in tracking.uri or MLFLOW_TRACKING_URI. A bundle folder needs none."
        return ModelError(received, "an MLflow store that answers", remedy)
    try:
        entry = mlflow_client().get_registered_model(name)
    except MlflowException:
        remedy = (
            "Check the name, and the store in tracking.uri or MLFLOW_TRACKING_URI; "
            "`mmh train-global` and `mmh train-target` register models."
        )
        return ModelError(received, "a registered model", remedy)
    aliases = ", ".join(f"models:/{name}@{alias} (version {version})" for alias, version in entry.aliases.items())
    newest = max((int(version.version) for version in entry.latest_versions), default=0)
    expected = f"an alias of {name} ({aliases or 'there are none'}) or a version (the newest is {newest or 'missing'})"
    return ModelError(received, expected, "Use one of these, or set the alias in MLflow.")


def download(name: str, expected: str, **source: str) -> Path:
    """Download artifacts from ``source``, the arguments of MLflow's function; ModelError if they cannot be reached."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(**source))
    except (MlflowException, OSError) as error:
        store = without_credentials(mlflow.get_tracking_uri())
        received = f"{name} at {store}: {' '.join(without_credentials(error).split())[:300]}"
        remedy = "Check the URI, and that the artifacts can be reached from here."
        raise ModelError(received, expected, remedy) from error


def bundle_inside(folder: Path, model: str, facts: str) -> Path:
    """The bundle folder inside the artifacts of a model; the artifacts may also be the bundle itself.

    Parameters
    ----------
    folder:
        The artifacts; they are untrusted.
    model:
        Name of the model in errors.
    facts:
        File that identifies the bundle: :data:`GLOBAL` or :data:`TARGET`.

    Raises
    ------
    ModelError
        If there is no such bundle inside the artifacts.
    """
    if (folder / facts).is_file():
        return folder
    bundle_path = _recorded_bundle_path(folder / "MLmodel")
    if bundle_path is not None:
        bundle = folder / bundle_path
        if not is_inside(bundle, folder):
            received = f"{model}: its bundle at {bundle_path[:300]!r}, outside its artifacts"
            raise ModelError(received, "a bundle among its artifacts", "Do not use a model that was changed by hand.")
        if (bundle / facts).is_file():
            return bundle
    expected = f"a model with a bundle ({facts} and weights) among its artifacts"
    raise ModelError(f"{model}: has no such bundle", expected, f"Use a model that `{_COMMANDS[facts]}` registered.")


def _recorded_bundle_path(description: Path) -> str | None:
    """Path of the bundle in the description of an MLflow model; None if there is no description or no path in it."""
    if not os.path.lexists(description):
        return None
    try:
        value = load_yaml(read_bytes(description, MOST_BYTES))
    except (OSError, yaml.YAMLError) as error:
        remedy = "Download the model again, or train it again."
        raise ModelError(f"{description}: {error}", "the description of an MLflow model", remedy) from error
    for key in ("flavors", "python_function", "artifacts", "bundle", "path"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec("string", "sequence"),
        ColSpec("binary", "scan", required=False),
        ColSpec("binary", "scan_mask", required=False),
        ColSpec("string", "path", required=False),
        ColSpec("string", "mask", required=False),
        ColSpec("string", "output", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec("string", "status"),
        ColSpec("string", "reason"),
        ColSpec("binary", "scan", required=False),
        ColSpec("string", "output", required=False),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))
