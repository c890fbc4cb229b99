"""The registered model as MLflow loads it: this file is stored with the model and run at loading (models from code).

::

    model = mlflow.pyfunc.load_model("models:/mmh-global@champion")
    model.predict(pandas.DataFrame({"path": ["sub-1_T1w.nii.gz"], "sequence": ["T1w"], "output": ["out.nii.gz"]}))
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class HarmonizerModel(PythonModel):
    """Harmonizes the scans that a table names, by the same function as `mmh harmonize`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the bundle; of a target, also its global model.

        That is the registered one that the target names, in the caller's store, or what ``model_config={"base": FOLDER}`` names.
        """
        from mmh_ray.config import TrackingConfig
        from mmh_ray.harmonization.harmonizer import Harmonizer
        from mmh_ray.models.bundle import load_bundle
        from mmh_ray.models.target.bundle import FACTS, load_target
        from mmh_ray.tracking import BASE, resolve_recorded

        folder, self.target = Path(context.artifacts["bundle"]), None
        if (folder / FACTS).is_file():
            self.target = load_target(folder)
            store = TrackingConfig(uri=mlflow.get_tracking_uri())
            given = (context.model_config or {}).get(BASE)
            folder, _ = resolve_recorded(self.target.facts["base"]["uri"], store, given)
        bundle, settings = load_bundle(folder), None
        if self.target is not None:
            self.target.attach(bundle)
            settings = self.target.sampling(bundle.config.harmonize)
        self.harmonizer = Harmonizer(bundle, settings)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None):
        """Harmonize each row and write the result.

        Columns: ``path`` (NIfTI file), ``sequence`` (BIDS suffix), optionally ``mask`` (NIfTI file; else estimated) and
        ``output`` (file to write; else one in a new temporary folder). Returns the columns ``output``, ``status`` (done
        or failed) and ``reason``.
        """
        columns = ("path", "sequence", "mask", "output")
        rows = [{name: _given(row.get(name)) for name in columns} for row in model_input.to_dict("records")]
        if not all(row["output"] for row in rows):
            folder = Path(tempfile.mkdtemp(prefix="mmh-harmonized-"))
            for number, row in enumerate(rows):
                row["output"] = row["output"] or str(folder / f"{number:05d}_{Path(str(row['path'])).name}")
        return pd.DataFrame(
            [self._run(row) for row in rows], columns=["output", "status", "reason"], index=model_input.index
        )

    def _run(self, row: dict[str, str]) -> dict[str, str]:
        try:
            self._harmonize(**row)
        except Exception as error:  # a scan that cannot be used is its own row's affair
            return {"output": "", "status": "failed", "reason": str(error) or type(error).__name__}
        return {"output": row["output"], "status": "done", "reason": ""}

    def _harmonize(self, path: str, sequence: str, mask: str, output: str) -> None:
        from mmh_ray.errors import DataError, naming_mask
        from mmh_ray.imaging.volume import read_mask, read_volume, write_volume

        if Path(path).resolve() == Path(output).resolve():
            raise DataError(f"output {output}, which is the scan itself", "another file", "Harmonize into a new file.")
        inside = read_mask(mask) if mask else None
        with naming_mask(mask):
            (scan,) = self.harmonizer.run_targets(read_volume(path), sequence, inside, [self.target])
        write_volume(scan.volume, output)


def _given(value: Any) -> str:
    """A table's cell as text; empty where there is none."""
    return value if isinstance(value, str) else ""


mlflow.models.set_model(HarmonizerModel())
