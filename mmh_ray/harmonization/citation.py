"""Writes OUT/logs/CITATION.md: text for the methods section of a paper, with the run's versions and settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmh_ray.bids.status import RunRecord
from mmh_ray.imaging.template import SPACE
from mmh_ray.provenance import check_place, whole_file

CITATION = "logs/CITATION.md"

_SAMPLING = "DDIM sampling from noise in {steps} step(s)"
_INVERSION = "DDIM inversion of the scan in {depth} steps and sampling in {steps} step(s)"
_DETAIL = {
    "project": "The changes by the model were reduced to one monotone intensity curve and one smooth field per scan, "
    "which were applied to the scan's own voxels.",
    "model": "The model's own image was resampled to the grid of the output; the scan's own voxels were not kept.",
}
_SPACE = {
    "native": "Images stayed on the grid of the scan.",
    "template": f"Images were resampled to the 1 mm grid of the template {SPACE}.",
}
_INTENSITY = {
    "unit": "Intensities are in units of the unified domain (0 background, about 1 bright tissue).",
    "source": "Intensities are in the range of the scan, with the contrast of the unified domain.",
}
_SKULL = {"keep": "", "strip": " Voxels outside the brain mask were set to zero."}
_REFERENCES = """\
- Wu, Sun, Wang, Yap, Liu: Unified multi-site multi-sequence brain MRI harmonization enriched by biomedical semantic
  style. arXiv:2601.08193.
- Tustison et al.: N4ITK: Improved N3 bias correction. IEEE Transactions on Medical Imaging 29 (2010), 1310-1320.
- Gorgolewski et al.: The brain imaging data structure. Scientific Data 3 (2016), 160044.
- Moritz et al.: Ray: A distributed framework for emerging AI applications. OSDI (2018), 561-577."""


def citation_text(record: RunRecord, targets: Iterable[str] = ()) -> str:
    """The text, in Markdown.

    Parameters
    ----------
    record:
        Record of a run by :func:`mmh_ray.distributed.harmonize.harmonize`.
    targets:
        Names of the target domains; empty for the unified domain.
    """
    harmonize = record.settings["harmonize"]
    prepare = record.settings["prepare"]
    sampling = _INVERSION if harmonize["inversion_depth"] else _SAMPLING
    sampled = sampling.format(steps=harmonize["steps"], depth=harmonize["inversion_depth"])
    names = ", ".join(targets)
    domain = f"the look of the target {names}" if names else "the model's unified domain, one look per sequence"
    alignment = "registered to ICBM-152" if prepare["register"] else "left in the orientation of its header"
    planes = ", ".join(harmonize["planes"])
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    return f"""\
# How to describe this run

*This text may be copied into a paper. Change it where your own pipeline differs.*

Brain MRI scans were harmonized with mmh_ray {record.version}, an implementation of MMH (Wu et al., arXiv:2601.08193) on
Ray (Moritz et al., 2018). The model was {record.model} (hash {record.model_hash}). Each scan was {alignment},
corrected for its bias field by N4 (Tustison et al., 2010) if the model was trained with this correction, and mapped to
{domain}, by {sampled}
along these planes: {planes}. Their estimates were fused by the {harmonize["fusion"]}. The seed was {harmonize["seed"]}.
{_DETAIL[harmonize["detail"]]} {_SPACE[harmonize["space"]]} \
{_INTENSITY[harmonize["intensity"]]}{_SKULL[prepare["skull"]]}
Results are BIDS derivatives (Gorgolewski et al., 2016). The sidecar beside each image records how it was processed;
`ledger.parquet` lists images that were refused or failed, with the reasons.

Software: {versions}.

## References

{_REFERENCES}
"""


def write_citation(record: RunRecord, out: str | Path, targets: Iterable[str] = ()) -> Path:
    """Write OUT/logs/CITATION.md, whole or not at all, and return its path; DataError if a link leads out of OUT."""
    path = Path(out) / CITATION
    check_place(path, out)
    text = citation_text(record, targets)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path
