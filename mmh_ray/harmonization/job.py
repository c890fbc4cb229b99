"""What a user asks of the batch job, the model it uses, and the images it hands out."""

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
        Look only at images that an earlier run into ``out`` failed at or refused.
    targets:
        Sites, target bundles or ``models:/NAME@ALIAS`` to move the images to.
    target_image:
        A scan whose contrast, sharpness and noise the images are to take on, instead of or besides ``targets``. Without
        either, the images are brought into the unified domain.
    sessions:
        Labels without ``ses-`` to keep; empty keeps all.
    filters:
        Which images of each sequence to keep, by their entities.
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
    """Which model a run uses.

    Attributes
    ----------
    uri:
        ``mmh-base``, ``models:/NAME/VERSION`` or the URI of a folder.
    hash:
        Of the bundle.
    """

    uri: str
    hash: str


class Task(ManifestRow):
    """One image to harmonize: its row of the manifest, and what earlier runs made of it."""

    earlier: dict[str | None, LedgerRow]
    """Rows of the ledger by the name of the target, None for the unified domain."""
