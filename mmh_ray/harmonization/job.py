"""Data types of the batch job: the user's request, the identity of the model, and the task of one image."""

from __future__ import annotations

from dataclasses import dataclass

from mmh_ray.bids.filters import NO_FILTERS, Filters
from mmh_ray.bids.rows import LedgerRow, ManifestRow
from mmh_ray.config import Config


@dataclass(frozen=True)
class Job:
    """A run over an archive.

    Attributes
    ----------
    bids, out:
        Folders of the archive and of the derivatives, or their URIs in an object store.
    model:
        ``mmh-base``, a bundle folder or ``models:/NAME@ALIAS``.
    participants, sequences:
        Labels without ``sub-`` and BIDS suffixes to keep; empty keeps all.
    retry_failed:
        Process only images that failed or were refused in an earlier run into ``out``.
    targets:
        Sites, target bundles or ``models:/NAME@ALIAS`` to map the images to.
    target_image:
        A scan whose contrast, sharpness and noise the images get, instead of or besides ``targets``. Without either,
        the images are mapped to the unified domain.
    sessions:
        Labels without ``ses-`` to keep; empty keeps all.
    filters:
        Entities of the images to keep, by sequence.
    """

    bids: str
    out: str
    model: str
    config: Config
    participants: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    retry_failed: bool = False
    targets: tuple[str, ...] = ()
    target_image: str | None = None
    sessions: tuple[str, ...] = ()
    filters: Filters = NO_FILTERS


@dataclass(frozen=True)
class ModelIdentity:
    """The model that a run uses.

    Attributes
    ----------
    uri:
        ``mmh-base``, ``models:/NAME/VERSION`` or the URI of a folder.
    hash:
        Hash of the bundle.
    """

    uri: str
    hash: str


class Task(ManifestRow):
    """One image to harmonize: its row of the manifest, and its ledger rows from earlier runs."""

    earlier: dict[str | None, LedgerRow]
    """Ledger rows by name of the target; None is the unified domain."""
