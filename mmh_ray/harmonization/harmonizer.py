"""Harmonizes one scan: prepares it, runs the model, and maps the result back to the scan's grid. No Ray, no BIDS."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmh_ray.config import HarmonizeConfig, PrepareConfig, QualityConfig
from mmh_ray.errors import ConfigError, RefusedError
from mmh_ray.imaging.detail import NOISE, continued, fit_mapping, without_noise
from mmh_ray.imaging.grid import box_of, from_grid
from mmh_ray.imaging.ground import background
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.imaging.preprocess import Prepared, prepare_volume
from mmh_ray.imaging.registration import in_template_space
from mmh_ray.imaging.template import SPACE
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.bundle import Bundle
from mmh_ray.models.sampling import estimate_planes, fuse, unify_planes
from mmh_ray.models.target.adapter import SiteStyle, with_adapter
from mmh_ray.models.target.bundle import Target
from mmh_ray.quality.checks import check_prepared
from mmh_ray.quality.describe import describe_air, describe_outcome, describe_scan
from mmh_ray.quality.measures import flags
from mmh_ray.threads import one_thread

_FILTER_MARGIN = 2
"""Voxels around the brain where the noise is filtered; its windows are 3 voxels wide."""


@dataclass(frozen=True)
class HarmonizedScan:
    """A harmonized scan, with its quality.

    Attributes
    ----------
    volume:
        The harmonized image on the scan's own grid or the template's; finite, and not negative in unit intensity.
    space:
        BIDS name of the image's template space; None for the scan's own space.
    stripped:
        Whether the image shows only the brain.
    prepared:
        The scan on the working grid.
    model_image:
        ``(X, Y, Z)`` the model's own image on the working grid, before any detail projection.
    source, harmonized:
        The scan and the harmonized image, always on the scan's own grid and in unit intensity.
    quality:
        Figures by :attr:`mmh_ray.quality.cohort.Measure.name`: see :func:`mmh_ray.quality.measures.measures`.
    flags:
        Reasons to look at the image, in words; empty if nothing is out of bounds.
    """

    volume: Volume
    space: str | None
    stripped: bool
    prepared: Prepared
    model_image: np.ndarray
    source: Volume
    harmonized: Volume
    quality: dict[str, float]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class PreparedScan:
    """A scan that is prepared for the model.

    Attributes
    ----------
    volume:
        The scan on its native grid.
    sequence:
        BIDS suffix.
    prepared:
        The scan on the working grid.
    """

    volume: Volume
    sequence: str
    prepared: Prepared


@dataclass(frozen=True)
class ReadyScan(PreparedScan):
    """A prepared scan that has passed the checks.

    Attributes
    ----------
    figures:
        From :func:`mmh_ray.quality.describe.describe_scan`, and ``held``, the share of its brain on the working grid.
    """

    figures: dict[str, float]


@dataclass(frozen=True)
class InferredImage:
    """Output of the model for a scan and a target.

    Attributes
    ----------
    values:
        ``(X, Y, Z)`` on the working grid, unit intensity.
    noise:
        Standard deviation of the noise to leave in an image of this target.
    disagreement:
        Mean standard deviation of the planes' estimates in the unified domain; None for a single plane.
    """

    values: np.ndarray
    noise: float
    disagreement: float | None


class Harmonizer:
    """Harmonizes scans with a loaded model.

    Parameters
    ----------
    bundle:
        The model and the preparation that it was trained with.
    settings:
        Settings of sampling; by default the bundle's.
    prepare:
        Its :func:`job_preparation` replaces that of the bundle.
    quality:
        Bounds for flagging and refusing; by default the bundle's.

    Raises
    ------
    ConfigError
        If the template's space is requested without registration.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: HarmonizeConfig | None = None,
        prepare: PrepareConfig | None = None,
        quality: QualityConfig | None = None,
    ) -> None:
        self.bundle = bundle
        self.settings = settings or bundle.config.harmonize
        self.quality = quality or bundle.config.quality
        self.prepare = bundle.config.prepare
        if prepare is not None:
            self.prepare = replace(self.prepare, **job_preparation(prepare))
        if self.settings.space == "template" and not self.prepare.register:
            received = "harmonize.space=template with prepare.register=false"
            raise ConfigError(received, "a registration", "Set prepare.register=true.")

    def run(self, volume: Volume, sequence: str, mask: np.ndarray | Volume | None = None) -> HarmonizedScan:
        """Harmonize a scan into the unified domain.

        Parameters
        ----------
        volume:
            The scan, any orientation, spacing and shape.
        sequence:
            BIDS suffix, one of the model's sequences.
        mask:
            ``(I, J, K)`` bool brain mask at the scan's grid, or a volume on any grid; None estimates one.

        Raises
        ------
        ModelError
            If the model was not trained on the sequence.
        DataError
            If the scan cannot be used; a MaskError if its mask does not fit.
        RefusedError
            If the template does not fit, or the tissues are not ordered as in the sequence.
        """
        return self.run_targets(volume, sequence, mask, [None])[0]

    def run_targets(
        self,
        volume: Volume,
        sequence: str,
        mask: np.ndarray | Volume | None,
        targets: Sequence[Target | None],
    ) -> list[HarmonizedScan]:
        """Harmonize a scan to several targets in one global pass; None is the unified domain. Otherwise as :meth:`run`.

        Raises
        ------
        RefusedError
            Also if a target was not trained on the sequence.
        """
        scan = self._prepared(volume, sequence, mask)
        with ThreadPoolExecutor(max_workers=1) as background:  # the network works while the scan is checked
            inferring = background.submit(self.infer, scan, targets)
            ready = self._checked(scan)
            images = inferring.result()
        return [self.finish(ready, image) for image in images]

    def ready(self, volume: Volume, sequence: str, mask: np.ndarray | Volume | None = None) -> ReadyScan:
        """First step of :meth:`run`, without the model: prepare the scan; RefusedError if it must not be harmonized."""
        return self._checked(self._prepared(volume, sequence, mask))

    def _prepared(self, volume: Volume, sequence: str, mask: np.ndarray | Volume | None) -> PreparedScan:
        """Prepare a scan on the working grid, without the checks of :meth:`_checked`."""
        self.bundle.sequence_index(sequence)  # refuses an unknown sequence
        # The first axis is contiguous in arrays from files, the last in computed arrays; mixing both is much slower.
        volume = volume.like(np.ascontiguousarray(volume.data))
        prepared = prepare_volume(volume, mask, self.bundle.config.grid, self.prepare)
        return PreparedScan(volume, sequence, prepared)

    def _checked(self, scan: PreparedScan) -> ReadyScan:
        """Compute the scan's figures; RefusedError if it must not be harmonized."""
        prepared = scan.prepared
        figures = describe_scan(scan.volume, prepared.brain, prepared.registration, prepared)
        figures["held"] = prepared.held
        check_prepared(
            sequence=scan.sequence,
            figures=figures,
            config=self.quality,
            volume=scan.volume,
            prepared=prepared,
            grid=self.bundle.config.grid,
            settings=self.prepare,
        )
        return ReadyScan(scan.volume, scan.sequence, prepared, figures)

    @one_thread()
    def infer(self, scan: PreparedScan, targets: Sequence[Target | None] = (None,)) -> list[InferredImage]:
        """Second step: run the model for one image per target, on the working grid; the global pass runs once."""
        sequence = scan.sequence
        mask = scan.prepared.mask
        planes = self.sample_planes(scan.prepared, self.bundle.sequence_index(sequence))
        disagreement: float | None = None
        if len(planes) > 1:
            disagreement = float(planes[:, mask].std(axis=0).mean())
        unified = fuse(planes, mask, self.settings)
        without_adapter: np.ndarray | None = None  # computed once, for the first target with an adapter
        images = []
        for target in targets:
            if target is None:
                images.append(InferredImage(unified, NOISE, disagreement))
                continue
            style = self._style(target, sequence)
            moved = unified[None]
            if sequence in target.weights:
                if without_adapter is None:
                    without_adapter = self._estimate_again(unified, scan)
                with with_adapter(self.bundle.model, target.adapter(sequence)):
                    moved = moved + self._estimate_again(unified, scan) - without_adapter
            values = fuse(style.moved(moved, mask), mask, self.settings)
            images.append(InferredImage(values, style.noise_left(NOISE), disagreement))
        return images

    @one_thread()
    def finish(self, ready: ReadyScan, image: InferredImage) -> HarmonizedScan:
        """Last step: map an image back to the scan's own grid, and compute quality and flags."""
        prepared = ready.prepared
        source = prepared.ground.applied_to(ready.volume)
        harmonized = source.like(self._to_native(source, prepared, image))
        figures = ready.figures | describe_outcome(source, harmonized, prepared.brain)
        figures |= describe_air(harmonized, prepared.ground)
        if image.disagreement is not None:
            figures["disagreement"] = image.disagreement
        finished, space = self._finished(harmonized, ready)
        return HarmonizedScan(
            volume=finished,
            space=space,
            stripped=prepared.stripped or self.prepare.skull == "strip",
            prepared=prepared,
            model_image=image.values,
            source=source.like(prepared.scaling.apply(source.data)),
            harmonized=harmonized,
            quality=figures,
            flags=flags(figures, self.quality),
        )

    def _estimate_again(self, unified: np.ndarray, scan: PreparedScan) -> np.ndarray:
        """Run the network on an image that is already unified; returns its estimates ``(planes, X, Y, Z)``."""
        label = self.bundle.sequence_index(scan.sequence)
        return estimate_planes(self.bundle.model, unified, scan.prepared.mask, label, self.settings)

    @staticmethod
    def _style(target: Target, sequence: str) -> SiteStyle:
        if sequence not in target.styles:
            known = ", ".join(target.styles)
            raise RefusedError(f"{sequence} for target {target.site}", f"one of {known}", "Train the target on it.")
        return target.styles[sequence]

    def _finished(self, native: Volume, ready: ReadyScan) -> tuple[Volume, str | None]:
        """Convert an image to the requested space and intensities, and strip the skull if requested.

        Returns
        -------
        The image, and the name of its template space; None for the scan's own space.
        """
        prepared = ready.prepared
        space: str | None = None
        image = native
        brain = native.like(prepared.brain)
        if self.settings.space == "template" and prepared.registration is not None:
            space = SPACE
            image = in_template_space(native, prepared.registration, order=3)
            brain = in_template_space(brain, prepared.registration, order=1)
        data = np.clip(image.data, 0, None)
        if self.prepare.skull == "strip":
            data = data * (brain.data > 0.5)
        if self.settings.intensity == "source":
            data = prepared.scaling.undo(data)
            if prepared.stripped and space is None:
                empty = background(ready.volume.data, prepared.ground.fill)
                is_empty = (ready.volume.data == empty) & ~prepared.brain
                data[is_empty] = empty
        return image.like(data), space

    def sample_planes(self, prepared: Prepared, label: int) -> np.ndarray:
        """Unified images ``(P, I, J, K)`` float32 of a prepared scan, one per plane."""
        return unify_planes(self.bundle.model, prepared.image, prepared.mask, label, self.settings)

    def _to_native(self, volume: Volume, prepared: Prepared, inferred: InferredImage) -> np.ndarray:
        """Map an image to the scan's grid, ``(I, J, K)`` float32, not negative.

        With detail projection, the curve and the field of :func:`mmh_ray.imaging.detail.fit_mapping` are applied to the
        scan's own voxels, and noise in the brain is reduced. Air stays dark, as the curve maps 0 to 0.
        """
        shape = volume.data.shape
        image = inferred.values
        mask = prepared.mask

        def to_native(values: np.ndarray) -> np.ndarray:
            return from_grid(values, prepared.affine, volume.affine, shape)

        if self.settings.detail == "model":
            return np.clip(to_native(image), 0, None)
        with ThreadPoolExecutor(max_workers=1) as background:  # the slowest steps run on two cores
            resampling_mask = background.submit(to_native, mask.astype(np.float32))
            resampling_image = background.submit(to_native, continued(image, mask))
            curve, field = fit_mapping(prepared.image, image, mask, self.bundle.config.grid.spacing_mm)
            floor = np.float32(prepared.ground.floor)
            without_field = (volume.data - floor) * to_native(prepared.gain * field) + floor
            projected = curve.apply(prepared.scaling.apply(without_field))
        brain_share = resampling_mask.result()
        styled = resampling_image.result()
        brain = brain_share > 0.5
        noise = noise_level(projected, brain)
        noise_of_model = noise_level(image, mask)
        noise_of_scan = noise_level(curve.apply(prepared.image * field), mask)
        share_kept = noise_of_model / max(noise_of_scan, 1e-6)
        # Remove at most the share of the noise that the model has removed.
        noise_left = max(inferred.noise, noise * min(1.0, share_kept))
        harmonized = np.clip(projected, 0, None)
        if brain_share.any():
            box = box_of(brain_share, margin=_FILTER_MARGIN)  # the rest, mostly air, is not filtered
            detailed = without_noise(styled[box], projected[box], noise, brain[box], noise_left)
            share = brain_share[box]
            blend = share * detailed + (1 - share) * projected[box]
            harmonized[box] = np.clip(blend, 0, None)
        return harmonized


def job_preparation(prepare: PrepareConfig) -> dict[str, Any]:
    """The settings of the preparation that a job may choose; all others are the model's."""
    return {"crop_neck": prepare.crop_neck, "register": prepare.register, "skull": prepare.skull}


def with_smaller_batches(settings: HarmonizeConfig) -> HarmonizeConfig:
    """The settings with half the slabs per pass, after a device ran out of memory."""
    return replace(settings, batch_slabs=max(1, settings.batch_slabs // 2))
