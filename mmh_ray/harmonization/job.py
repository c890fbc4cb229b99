"""What a user asks of the batch job."""

from __future__ import annotations

from dataclasses import dataclass

from mmh_ray.config import Config


@dataclass(frozen=True)
class Job:
    """A run over an archive.

    Attributes
    ----------
    bids, out:
        Folders of the archive and of the derivatives.
    model:
        ``mmh-base``, a bundle folder or ``models:/NAME@ALIAS``.
    participants, sequences:
        Labels without ``sub-`` and BIDS suffixes to keep; empty keeps all.
    retry_failed:
        Look only at images that an earlier run into ``out`` failed at or refused.
    targets:
        Sites, target bundles or ``models:/NAME@ALIAS`` to move the images to.
    target_image:
        A scan whose look the images are to take on, instead of or besides ``targets``. Without either, the unified domain is the aim.
    sessions:
        Labels without ``ses-`` to keep; empty keeps all.
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
