"""The registered model in MLflow: this file is stored with the model and run when it is loaded (models from code).

::

    model = mlflow.pyfunc.load_model("models:/mmh-global@champion")
    model.predict(pandas.DataFrame({"scan": [Path("sub-1_T1w.nii.gz").read_bytes()], "sequence": ["T1w"]}))
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from mmh_ray.config import TrackingConfig
from mmh_ray.errors import DataError, naming_mask
from mmh_ray.imaging.volume import read_mask, read_volume, write_volume

MOST_BYTES = 256 * 2**20
"""Largest scan or mask in a request, in bytes. Its voxels must also fit into memory."""
MOST_SCANS = 16
"""Largest number of scans as bytes in one request: their results are in memory together."""
FILES = ("path", "mask", "output")
"""Columns with names of files on the machine that runs the model."""


class HarmonizerModel(PythonModel):
    """Harmonizes the scans of a table, by the same function as `mmh harmonize`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle; for a target, also its global model.

        The global model is the registered one that is recorded in the target, from the caller's store, or the one from
        ``model_config={"base": FOLDER}``. With ``model_config={"files": True}`` rows may name files.
        """
        from mmh_ray.harmonization.harmonizer import Harmonizer
        from mmh_ray.models.bundle import load_bundle
        from mmh_ray.models.target.bundle import FACTS, load_target
        from mmh_ray.tracking import BASE, resolve_recorded
        from mmh_ray.tracking.registry import MAY_NAME_FILES

        model_config = context.model_config or {}
        self.may_name_files = model_config.get(MAY_NAME_FILES) is True
        self.is_free = threading.Lock()
        folder = Path(context.artifacts["bundle"])
        self.target = None
        if (folder / FACTS).is_file():
            self.target = load_target(folder)
            store = TrackingConfig(uri=mlflow.get_tracking_uri())
            recorded_uri = self.target.facts["base"]["uri"]
            folder, _ = resolve_recorded(recorded_uri, store, model_config.get(BASE))
        bundle = load_bundle(folder)
        settings = None
        if self.target is not None:
            self.target.attach(bundle)
            settings = self.target.sampling(bundle.config.harmonize)
        self.harmonizer = Harmonizer(bundle, settings)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None):
        """Harmonize each row.

        Columns: ``sequence`` (BIDS suffix), ``scan`` (bytes of a NIfTI file of at most 256 MiB, gzipped or not) and
        optionally ``scan_mask`` (bytes of a brain mask; missing or empty: one is estimated). At most 16 rows. If rows
        may name files, ``path`` and optionally ``mask`` and ``output`` can be given instead; the default output is in a
        new temporary folder.

        Returns the columns ``status`` (done or failed), ``reason``, ``scan`` (the harmonized scan as bytes of a .nii.gz
        file, if bytes were given) and ``output`` (the written file, if a file was given).
        """
        rows = model_input.to_dict("records")
        results = [self._run(row, number) for number, row in enumerate(rows)]
        return pd.DataFrame(results, columns=["status", "reason", "scan", "output"], index=model_input.index)

    def _run(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        result: dict[str, Any] = {"status": "done", "reason": "", "scan": None, "output": None}
        try:
            if _is_given(row.get("scan")):
                result["scan"] = self._harmonize_bytes(row, number)
            else:
                result["output"] = self._harmonize_file(row, number)
        except Exception as error:  # the other rows must not fail with it
            result |= {"status": "failed", "reason": str(error) or type(error).__name__}
        return result

    def _harmonize_bytes(self, row: dict[str, Any], number: int) -> bytes:
        files = [name for name in FILES if _is_given(row.get(name))]
        if files:
            raise DataError(f"scan together with {', '.join(files)}", "bytes or files", "Leave one of them out.")
        if number >= MOST_SCANS:
            remedy = "Send the others in another request."
            raise DataError(f"row {number + 1} of a request", f"{MOST_SCANS} scans at most", remedy)
        with tempfile.TemporaryDirectory(prefix="mmh-served-") as folder:
            try:
                scan = _as_file(row["scan"], "scan", folder)
                mask = _as_file(row["scan_mask"], "scan_mask", folder) if _is_given(row.get("scan_mask")) else None
                output = Path(folder, "harmonized.nii.gz")
                self._harmonize(scan, row.get("sequence"), mask, output)
                return output.read_bytes()
            except DataError as error:
                text = str(error).replace(f"{folder}/", "")  # the temporary folder means nothing to the client
                raise ValueError(text) from error

    def _harmonize_file(self, row: dict[str, Any], number: int) -> str:
        path, mask, output = (str(row[name]) if _is_given(row.get(name)) else None for name in FILES)
        if path is None:
            raise DataError("no scan", "the bytes of a NIfTI file in the column scan", "Add them.")
        if not self.may_name_files:
            remedy = 'Send bytes in the column scan, or load the model with model_config={"files": True}.'
            raise DataError(f"path {path[:300]}", "bytes: this model does not read files, as it may be served", remedy)
        if output is None:
            output = str(Path(tempfile.mkdtemp(prefix="mmh-harmonized-"), f"{number:05d}_{Path(path).name}"))
        if Path(path).resolve() == Path(output).resolve():
            raise DataError(f"output {output}, which is the scan itself", "another file", "Harmonize into a new file.")
        self._harmonize(Path(path), row.get("sequence"), None if mask is None else Path(mask), Path(output))
        return output

    def _harmonize(self, path: Path, sequence: Any, mask: Path | None, output: Path) -> None:
        scan = read_volume(path)
        inside = None if mask is None else read_mask(mask)
        with self.is_free, naming_mask(None if mask is None else str(mask)):  # a server calls from several threads
            (harmonized,) = self.harmonizer.run_targets(scan, str(sequence), inside, [self.target])
        write_volume(harmonized.volume, output)


def _is_given(value: Any) -> bool:
    """Whether a table cell has a value: a missing value is None, NaN or empty."""
    return isinstance(value, str | bytes) and len(value) > 0


def _as_file(content: Any, name: str, folder: str) -> Path:
    if not isinstance(content, bytes):
        received = f"{name} of type {type(content).__name__}"
        raise DataError(received, "the bytes of a NIfTI file", "In JSON send them as base64.")
    if len(content) > MOST_BYTES:
        remedy = "Compress it with gzip, or use `mmh harmonize`."
        raise DataError(f"{name} of {len(content)} bytes", f"{MOST_BYTES} at most", remedy)
    is_packed = content[:2] == b"\x1f\x8b"
    path = Path(folder, f"{name}.nii.gz" if is_packed else f"{name}.nii")
    path.write_bytes(content)
    return path


mlflow.models.set_model(HarmonizerModel())
