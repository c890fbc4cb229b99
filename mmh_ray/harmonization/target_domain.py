"""The domain that an image is mapped to (unified, or of a target site), and the names of its derivatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mmh_ray.bids.entities import UNIFIED, desc_of, output_path, parse
from mmh_ray.bids.rows import LedgerRow, ManifestRow, Status
from mmh_ray.config import HarmonizeConfig
from mmh_ray.errors import ConfigError, MMHError, RefusedError
from mmh_ray.imaging.template import SPACE
from mmh_ray.models.target.bundle import Target


@dataclass(frozen=True)
class TargetDomain:
    """The domain that an image is mapped to: the unified domain, or a target's.

    Attributes
    ----------
    target:
        None for the unified domain.
    settings_hash:
        Hash over the target and every setting that decides a voxel or the outcome.
    """

    target: Target | None
    settings_hash: str

    @property
    def name(self) -> str | None:
        """The target's name; None for the unified domain."""
        return self.target.site if self.target else None

    def ledger_id(self, image_id: str) -> str:
        """Key of the image's row in the ledger: `IMAGE@TARGET`, or the image's id for the unified domain."""
        return f"{image_id}@{self.name}" if self.target else image_id

    def output(self, uri: str, settings: HarmonizeConfig) -> PurePosixPath:
        """Path of the derivative of the scan at ``uri``, relative to the root of the derivatives.

        Raises
        ------
        DataError
            As :func:`~mmh_ray.bids.entities.output_path`.
        """
        return output_path(parse(uri), template_space(settings), desc_of(self.name))

    def unknown_sequence(self, sequence: str | None, model_sequences: Sequence[str]) -> RefusedError | None:
        """Error for an image with a BIDS suffix that the model or the target does not support; None if both do."""
        if sequence not in model_sequences:
            return _unknown(sequence, f"one that this model harmonizes: {', '.join(model_sequences)}")
        if self.target is not None and sequence not in self.target.styles:
            return _unknown(sequence, f"a sequence of target {self.name}: {', '.join(self.target.styles)}")
        return None


def _unknown(sequence: str | None, expected: str) -> RefusedError:
    return RefusedError(f"sequence {sequence}", expected, "Leave it out by --sequence, or train a model on it.")


def describe(target: str | None) -> str:
    """Description of an image that was mapped to a target; None is the unified domain."""
    if target is None:
        return "Harmonized by mmh_ray into the model's unified domain, one look per sequence."
    return f"Harmonized by mmh_ray to the look of target {target}."


def describe_labels(outputs: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Description of each label after `desc-`.

    Parameters
    ----------
    outputs:
        Path of a derivative, and the name of its target.
    """
    descriptions: dict[str, str] = {}
    for path, target in outputs:
        try:
            label = parse(path).tags.get("desc", "")
            of_target = desc_of(target)
        except MMHError:  # a damaged row of the ledger
            continue
        text = describe(target)
        if not label.lower().endswith(of_target.lower()):
            continue
        if label != of_target:  # starts with the `desc` label of the scan itself
            scan_label = label[: -len(of_target)]
            text = f"desc-{scan_label} of the source archive. {text}"
        descriptions[label] = text
    return descriptions


def template_space(settings: HarmonizeConfig) -> str | None:
    """Label of the template's space if images are written in it, else None."""
    return SPACE if settings.space == "template" else None


def check_names(
    images: Sequence[ManifestRow],
    domains: Sequence[TargetDomain],
    ledger_rows: Iterable[LedgerRow],
    settings: HarmonizeConfig,
) -> None:
    """Refuse targets whose derivatives would have the same names as another target's, of this run or an earlier one.

    Case is ignored, as on many file systems.

    Parameters
    ----------
    images:
        The images to harmonize.
    ledger_rows:
        Rows of earlier runs into the folder.

    Raises
    ------
    ConfigError
        If two targets share names, or a target's name leaves no label.
    """
    name_of_label: dict[str, str | None] = {}
    for domain in domains:
        label = desc_of(domain.name).lower()
        if label in name_of_label:
            raise _same_names(domain.name, name_of_label[label], "requested in the same run")
        name_of_label[label] = domain.name
    owner_of_output: dict[str, str | None] = {}
    for row in ledger_rows:
        if not row["output"]:
            continue
        label = _label(row["target"])
        if name_of_label.get(label, row["target"]) != row["target"]:
            raise _same_names(name_of_label[label], row["target"], f"which made {row['output']} in this folder")
        owner_of_output[row["output"]] = row["target"]
    for image in images:
        if image["status"] != Status.OK:
            continue
        for domain in domains:
            output = str(domain.output(image["uri"], settings))
            owner = owner_of_output.get(output, domain.name)
            if owner != domain.name:
                raise _same_names(domain.name, owner, f"which made {output} in this folder")


def _label(target: str | None) -> str:
    """Label of a target's images in lower case; that of the unified domain if the name is no longer valid."""
    try:
        return desc_of(target).lower()
    except ConfigError:
        return UNIFIED


def _same_names(target: str | None, other: str | None, which: str) -> ConfigError:
    received = (
        f"{_display_name(target)}, whose images would have the same names as images of {_display_name(other)}, {which}"
    )
    remedy = "Harmonize into another folder, or train one of them under another name."
    return ConfigError(received, "targets whose letters and digits differ", remedy)


def _display_name(target: str | None) -> str:
    return "the unified domain" if target is None else f"target {target!r}"
