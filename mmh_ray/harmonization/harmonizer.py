"""One scan through the whole of stage 1: prepare, harmonize, bring back to its own grid. No Ray, no BIDS: files or arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
    """What the harmonizer made of a scan.

    Attributes
    ----------
    volume:
        The harmonized image on the scan's own grid or the template's; finite; not negative in unit intensity (unified domain).
    space:
        BIDS name of the template space it lies in; None for the scan's own.
    stripped:
        Whether it shows the brain only.
    prepared:
        The scan on the working grid.
    model_image:
        ``(X, Y, Z)`` the model's own image on the working grid, before any detail projection.
    source, harmonized:
        The scan and the harmonized image, both on the scan's own grid and in unit intensity, whatever was asked for.
    quality:
        Figure by :attr:`mmh_ray.quality.cohort.Measure.name`: see :func:`mmh_ray.quality.checks.measures`.
    flags:
        Why a person should look at it, in words; empty if nothing is out of bounds.
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
    """A scan as the model can take it.

    Attributes
    ----------
    volume:
        The scan at its native grid.
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
    """A scan that waits for the model.

    Attributes
    ----------
    figures:
        What :func:`mmh_ray.quality.checks.describe_scan` says of it, and how much of its brain the working grid holds.
    """

    figures: dict[str, float]


@dataclass(frozen=True)
class InferredImage:
    """What the model made of a scan.

    Attributes
    ----------
    values:
        ``(X, Y, Z)`` on the working grid, unit intensity.
    noise:
        Standard deviation of the noise that belongs to the image's target.
    disagreement:
        Mean standard deviation of the planes' estimates in the unified domain; None of a single plane, which agrees with itself.
    """

    values: np.ndarray
    noise: float
    disagreement: float | None


class Harmonizer:
    """A loaded model, ready for any number of scans.

    Parameters
    ----------
    bundle:
        The model and the preparation it was trained with.
    settings:
        How to sample; the bundle's own settings by default.
    prepare:
        Where its crop_neck, register and skull come from; what decides intensities is always the bundle's.
    quality:
        What is flagged and refused; the bundle's own by default.

    Raises
    ------
    ConfigError
        If the template's space is asked for without registration.
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
            self.prepare = replace(
                self.prepare, crop_neck=prepare.crop_neck, register=prepare.register, skull=prepare.skull
            )
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
            If the model does not know the sequence.
        DataError
            If the scan cannot be used; a MaskError if its mask does not fit.
        RefusedError
            If the template does not fit, or the tissues are not ordered as those of the sequence.
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
            Also if a target does not know the sequence.
        """
        scan = self._prepared(volume, sequence, mask)
        with ThreadPoolExecutor(max_workers=1) as background:  # the network works while the scan is checked
            inferring = background.submit(self.infer, scan, targets)
            ready = self._checked(scan)
            images = inferring.result()
        return [self.finish(ready, image) for image in images]

    def ready(self, volume: Volume, sequence: str, mask: np.ndarray | Volume | None = None) -> ReadyScan:
        """First step of :meth:`run`, which takes no model: prepare the scan and refuse what must not be harmonized."""
        return self._checked(self._prepared(volume, sequence, mask))

    def _prepared(self, volume: Volume, sequence: str, mask: np.ndarray | Volume | None) -> PreparedScan:
        """The scan on the working grid; raises as :meth:`run`, but for what :meth:`_checked` refuses."""
        self.bundle.sequence_index(sequence)  # refuses a sequence that the model does not know
        # A file's first axis is contiguous, in what is computed the last: sums of such unlike arrays take many times as long.
        volume = volume.like(np.ascontiguousarray(volume.data))
        prepared = prepare_volume(volume, mask, self.bundle.config.grid, self.prepare)
        return PreparedScan(volume, sequence, prepared)

    def _checked(self, scan: PreparedScan) -> ReadyScan:
        """The scan with its figures; a RefusedError if it must not be harmonized."""
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
        """Second step, the model's: the image of every target on the working grid; the global pass runs once."""
        sequence = scan.sequence
        mask = scan.prepared.mask
        planes = self.sample_planes(scan.prepared, self.bundle.sequence_index(sequence))
        disagreement: float | None = None
        if len(planes) > 1:
            disagreement = float(planes[:, mask].std(axis=0).mean())
        unified = fuse(planes, mask, self.settings)
        without_adapter: np.ndarray | None = None  # estimated once, by the first target that has an adapter
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
        """Last step: an image back on the scan's own grid, with quality and flags."""
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
        """What the network makes of an image that is unified already, ``(planes, X, Y, Z)``, with and without an adapter."""
        label = self.bundle.sequence_index(scan.sequence)
        return estimate_planes(self.bundle.model, unified, scan.prepared.mask, label, self.settings)

    @staticmethod
    def _style(target: Target, sequence: str) -> SiteStyle:
        if sequence not in target.styles:
            known = ", ".join(target.styles)
            raise RefusedError(f"{sequence} for target {target.site}", f"one of {known}", "Train the target on it.")
        return target.styles[sequence]

    def _finished(self, native: Volume, ready: ReadyScan) -> tuple[Volume, str | None]:
        """The image in the space and the intensities that were asked for, with or without what surrounds the brain.

        Returns
        -------
        The image, and the name of the template space that it lies in; None for the scan's own.
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
        """The model's image of a prepared scan in the unified domain, ``(P, I, J, K)`` float32: one a plane."""
        return unify_planes(self.bundle.model, prepared.image, prepared.mask, label, self.settings)

    def _to_native(self, volume: Volume, prepared: Prepared, inferred: InferredImage) -> np.ndarray:
        """The harmonized image on the scan's grid, ``(I, J, K)`` float32, not negative.

        With detail projection it is the scan's own voxels under the curve and the field of
        :func:`mmh_ray.imaging.detail.fit_mapping`, inside the brain with less noise. Air stays dark, as the curve leads
        0 to 0.
        """
        shape = volume.data.shape
        image = inferred.values
        mask = prepared.mask

        def to_native(values: np.ndarray) -> np.ndarray:
            return from_grid(values, prepared.affine, volume.affine, shape)

        if self.settings.detail == "model":
            return np.clip(to_native(image), 0, None)
        with ThreadPoolExecutor(max_workers=1) as background:  # what takes longest is shared out among two cores
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
        # No more is taken away than the model has taken away.
        noise_left = max(inferred.noise, noise * min(1.0, share_kept))
        harmonized = np.clip(projected, 0, None)
        if brain_share.any():
            box = box_of(brain_share, margin=_FILTER_MARGIN)  # air, of which a scan has most, stays as projected
            detailed = without_noise(styled[box], projected[box], noise, brain[box], noise_left)
            share = brain_share[box]
            blend = share * detailed + (1 - share) * projected[box]
            harmonized[box] = np.clip(blend, 0, None)
        return harmonized


def with_smaller_batches(settings: HarmonizeConfig) -> HarmonizeConfig:
    """The same settings with half the slabs per pass, for a device that ran out of memory."""
    return replace(settings, batch_slabs=max(1, settings.batch_slabs // 2))
