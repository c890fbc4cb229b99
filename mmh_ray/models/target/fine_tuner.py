"""Stage 2, the target fine-tuner: trains an adapter from the unified domain to the style of one site.

The frozen global model unifies the site's scans, which gives pairs of the same voxels in both styles. The adapter
learns to map each unified scan back to the original (style reconstruction), and to move unified scans of other sites by
the same displacement of style.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mmh_ray.config import HarmonizeConfig, TargetConfig
from mmh_ray.imaging.intensity import noise_level
from mmh_ray.models.denoiser import to_unit
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.losses import (
    group_statistics,
    multiscale_gradient_l1,
    soft_cumulative,
    style_displacement,
    style_distance,
)
from mmh_ray.models.sampling import harmonize_volume, sample
from mmh_ray.models.slab_groups import Conditioner, slab_group, stack_groups
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of, switch_adapter
from mmh_ray.training import descend

NAME = "target"
"""Name of the adapter during training."""


@dataclass
class TargetBatch(SlabBatch):
    """Slice groups with the condition of unified volumes.

    ``image`` is to be reconstructed: the site's scan, with noise that is independent of the noise in ``unified``. For a
    volume of another site nobody knows its style at this site, so ``image`` and ``scan`` equal ``unified``.

    Attributes
    ----------
    unified:
        ``(B, K, H, W)`` the slab in the unified domain, unit intensity.
    scan:
        ``(B, K, H, W)`` the scan itself.
    """

    unified: Tensor
    scan: Tensor


@dataclass(frozen=True)
class UnifiedVolume:
    """A volume with its unified image, ready to be cut into slice groups.

    Attributes
    ----------
    image, unified, scan:
        ``(X, Y, Z)`` unit intensity; :class:`TargetBatch` holds slabs of them.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    conditioner:
        Computes the condition of the unified volume's slabs.
    """

    image: np.ndarray
    unified: np.ndarray
    scan: np.ndarray
    mask: np.ndarray
    conditioner: Conditioner

    @classmethod
    def of_source(
        cls, model: GlobalHarmonizer, scan: np.ndarray, mask: np.ndarray, sequence: int, settings: HarmonizeConfig
    ) -> UnifiedVolume:
        """Unify a prepared scan ``(X, Y, Z)`` of another site, in unit intensity."""
        unified = harmonize_volume(model, scan, mask, sequence, settings)
        domain = model.domain_quantiles[sequence].cpu().numpy()
        conditioner = Conditioner(unified, mask, domain, model.model_config)
        return cls(image=unified, unified=unified, scan=unified, mask=mask, conditioner=conditioner)

    @classmethod
    def of_target(
        cls,
        model: GlobalHarmonizer,
        scan: np.ndarray,
        mask: np.ndarray,
        sequence: int,
        settings: HarmonizeConfig,
        styled: Callable[[np.ndarray], np.ndarray],
        rng: np.random.Generator,
    ) -> UnifiedVolume:
        """Unify a prepared scan of the target site, after ``styled`` has changed its style.

        The adapter must not learn to reconstruct the noise that the global model left in the scan. So noise of the
        scan's own level is added to the model's input and subtracted from the image to reconstruct. The noise of the
        two is then independent (Recorrupted-to-Recorrupted: Pang et al., CVPR 2021, with alpha = 1).
        """
        noise = rng.normal(0, noise_level(scan, mask), scan.shape).astype(np.float32) * mask
        unified_volume = cls.of_source(model, styled(scan + noise), mask, sequence, settings)
        return replace(unified_volume, image=scan - noise, scan=scan)

    def group(self, sequence: int, config: TargetConfig, seed: int) -> dict[str, np.ndarray]:
        """Arrays of one slice group of a :class:`TargetBatch`."""
        return slab_group(
            images={"image": self.image, "unified": self.unified, "scan": self.scan},
            conditioner=self.conditioner,
            mask=self.mask,
            sequence=sequence,
            slabs_per_plane=config.slabs_per_plane,
            seed=seed,
            twin=seed,
        )


def batch_of(groups: Sequence[dict[str, np.ndarray]]) -> TargetBatch:
    """Groups of equal size as one batch."""
    return TargetBatch.of_groups(stack_groups(groups))


class TargetFineTuner(nn.Module):
    """The frozen global model with one adapter to train, and the losses of stage 2.

    Parameters
    ----------
    model:
        The global harmonizer; it is copied.
    style:
        The style of the site.
    encoder:
        Computes style vectors; it is frozen.
    """

    domain_cumulative: Tensor
    domain_moments: Tensor

    def __init__(
        self,
        model: GlobalHarmonizer,
        style: SiteStyle,
        encoder: TriPlanarStyleEncoder,
        config: TargetConfig,
        settings: HarmonizeConfig,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.encoder = encoder.requires_grad_(False)
        attach(self.model, NAME, config.rank)
        switch_adapter(self.model, NAME)
        self.style = style
        self.config = config
        self.settings = settings
        quantiles = torch.tensor(style.quantiles, dtype=torch.float32)
        self.register_buffer("domain_cumulative", soft_cumulative(quantiles))
        self.register_buffer("domain_moments", torch.stack([quantiles.mean(), quantiles.std()]))

    def forward(self, site: TargetBatch, source: TargetBatch, ramp: float = 1.0) -> dict[str, Tensor]:
        """Losses: ``loss`` is the weighted sum to differentiate, the others are its parts.

        ``ramp`` (0 to 1) is a further weight of the displacement loss. Generated images have no noise, but the site's
        scans have: so noise of the site's level is added before styles are compared.
        """
        config = self.config
        site_made, site_noise = self._generate(site)
        source_made, source_noise = self._generate(source)
        # The order of these lines decides the order in which gradients are summed, and with it the last digits.
        reconstruction = _masked_l1(site_made, site.image, site.mask)
        site_gradient = multiscale_gradient_l1(site_made, site.image, site.mask)
        source_by_curve = self.style.apply(source.unified)
        source_gradient = multiscale_gradient_l1(source_made, source_by_curve, source.mask, scales=(2, 4, 8))
        parts = {"reconstruction": reconstruction, "gradient": site_gradient + source_gradient}
        source_made = source_made + self.style.noise * source_noise
        site_made = site_made + self.style.noise * site_noise
        parts["statistics"] = self._statistics(source_made, source) + self._statistics(site_made, site)
        loss = config.reconstruction_weight * parts["reconstruction"] + config.gradient_weight * parts["gradient"]
        loss = loss + config.statistics_weight * parts["statistics"]
        if config.displacement_weight:
            parts["displacement"] = self._displacement(site, source, source_made)
            loss = loss + ramp * config.displacement_weight * parts["displacement"]
        return {"loss": loss, **parts}

    def _displacement(self, site: TargetBatch, source: TargetBatch, source_made: Tensor) -> Tensor:
        """How far the sources' displacement of style is from the site's, from unified image to scan."""
        site_scan = self._describe(site.scan, site)
        site_unified = self._describe(site.unified, site)
        of_site = (site_scan - site_unified).mean(0).detach()
        source_generated = self._describe(source_made, source)
        source_unified = self._describe(source.unified, source).detach()
        return style_displacement(source_generated - source_unified, of_site)

    def _generate(self, batch: TargetBatch) -> tuple[Tensor, Tensor]:
        """Generate a batch in the site's style, ``(B, K, H, W)`` unit intensity, and noise of unit variance to add.

        The adapter's effect on the network's output is added to the unified image, before the site's curve is applied.
        So an adapter without effect leaves just the curve.
        """
        noise, _ = self.model.draw(batch)
        context = self.model.context(batch)

        def denoise(x: Tensor, t: int) -> Tensor:
            timesteps = torch.full((len(x),), t, device=x.device)
            return self.model.denoiser(x, timesteps, batch.condition, context)

        with torch.no_grad():
            switch_adapter(self.model, None)
            without_adapter = sample(self.model, denoise, noise, self.settings.steps)
        switch_adapter(self.model, NAME)
        with_adapter = sample(self.model, denoise, noise, self.settings.steps, self.config.last_steps)
        corrected = batch.unified + to_unit(with_adapter) - to_unit(without_adapter)
        made = self.style.apply(corrected) * batch.mask
        other_noise = noise.roll(1, 0) * batch.mask  # of another slab, so independent of the generated image
        return made, other_noise

    def _statistics(self, image: Tensor, batch: TargetBatch) -> Tensor:
        """Mean distance of the groups from the site, by histograms and moments."""
        centre = image.shape[1] // 2
        cumulative, moments = group_statistics(image[:, centre], batch.mask[:, centre], batch.group)
        distance = style_distance(cumulative, moments, self.domain_cumulative, self.domain_moments)
        return distance.mean()

    def _describe(self, image: Tensor, batch: TargetBatch) -> Tensor:
        """Style vectors ``(G, D)`` from the centre slices of the slabs."""
        centre = image.shape[1] // 2
        groups = int(batch.group.max()) + 1

        def by_plane(values: Tensor) -> Tensor:
            return values[:, centre].unflatten(0, (groups, 3, -1))

        return self.encoder.of_slices(by_plane(image), by_plane(batch.mask))


@dataclass(frozen=True)
class TunedAdapter:
    """Outcome of :func:`tune`: the adapter with the lowest validation loss.

    Attributes
    ----------
    state:
        Its weights.
    validation:
        Name to value of its validation losses; ``loss`` decided.
    untuned:
        The validation losses before the first step: those of the curve alone.
    steps:
        Number of steps after which it was the best.
    """

    state: dict[str, Tensor]
    validation: dict[str, float]
    untuned: dict[str, float]
    steps: int


def tune(
    tuner: TargetFineTuner,
    draw: Callable[[int], tuple[TargetBatch, TargetBatch]],
    validation: Sequence[tuple[TargetBatch, TargetBatch]],
    advance: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> TunedAdapter:
    """Train the adapter until its validation loss no longer falls.

    Parameters
    ----------
    draw:
        Returns the batches of the site and of the sources for a step.
    validation:
        Batches of images that ``draw`` never returns; the slabs' keys decide their noise.
    advance:
        Called after every step with its number, from 1, and losses.
    """
    config = tuner.config
    device = next(tuner.parameters()).device
    weights = [parameter for parameter in tuner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, config.learning_rate, weight_decay=0.0)
    untuned = _validate(tuner, validation)
    best = TunedAdapter(state_of(tuner.model, NAME), untuned, untuned, 0)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, config)
        site, source = draw(step)
        ramp = min(1.0, 5 * (step + 1) / config.steps)
        losses = tuner(site.to(device), source.to(device), ramp)
        descend(losses["loss"], optimizer)
        figures = {name: float(loss.detach()) for name, loss in losses.items()}
        steps_done = step + 1
        if steps_done % config.validate_every == 0 or steps_done == config.steps:
            score = _validate(tuner, validation)
            figures |= {f"val_{name}": loss for name, loss in score.items()}
            if score["loss"] < best.validation["loss"]:
                best = TunedAdapter(state_of(tuner.model, NAME), score, untuned, steps_done)
        advance(steps_done, figures)
        if steps_done - best.steps >= config.patience * config.validate_every:
            break
    return best


@torch.no_grad()
def _validate(tuner: TargetFineTuner, batches: Sequence[tuple[TargetBatch, TargetBatch]]) -> dict[str, float]:
    """Mean losses over the batches."""
    device = next(tuner.parameters()).device
    means: dict[str, float] = {}
    for site, source in batches:
        losses = tuner(site.to(device), source.to(device))
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + float(loss) / len(batches)
    return means


def _masked_l1(made: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    error = (made - target).abs() * mask
    voxels = mask.sum().clamp_min(1)
    return error.sum() / voxels


def _learning_rate(step: int, config: TargetConfig) -> float:
    """Linear warm-up over a tenth of the steps, then half a cosine to 0.

    ``diffusers.optimization`` has the same curve, but starts its warm-up at 0 and multiplies in another order.
    """
    warm_up = max(1, config.steps // 10)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    steps_after = max(1, config.steps - warm_up)
    angle = math.pi * (step - warm_up) / steps_after
    half_cosine = 1 + math.cos(angle)
    return config.learning_rate * 0.5 * half_cosine
