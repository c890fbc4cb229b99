"""Stage 2, the target fine-tuner: from the unified domain to the look of one site.

The site's own scans, unified by the frozen global model, are pairs of the same voxels in both looks. An adapter learns
to bring the one back to the other (style reconstruction), and scans of other sites, unified in the same way, along the
same displacement of style.
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
    cumulative_from_quantiles,
    group_statistics,
    multiscale_gradient_l1,
    style_displacement,
    style_distance,
)
from mmh_ray.models.sampling import harmonize_volume, sample
from mmh_ray.models.slab_groups import Conditioner, slab_group
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.models.target.adapter import SiteStyle, attach, state_of, wear
from mmh_ray.training import descend

NAME = "target"
"""Name of the adapter while it is trained."""


@dataclass
class TargetBatch(SlabBatch):
    """Slice groups whose condition comes from unified volumes.

    ``image`` is what to reconstruct: the site's scan with noise independent of that in ``unified``.

    Attributes
    ----------
    unified:
        ``(B, K, H, W)`` the slab in the unified domain, unit intensity.
    scan:
        ``(B, K, H, W)`` the scan itself; of a source volume, whose look at the site nobody knows, it and ``image`` are
        the unified one.
    """

    unified: Tensor
    scan: Tensor


@dataclass(frozen=True)
class UnifiedVolume:
    """A volume after the global model, ready to give slice groups.

    Attributes
    ----------
    image, unified, scan:
        ``(X, Y, Z)`` unit intensity, what :class:`TargetBatch` has slabs of.
    mask:
        ``(X, Y, Z)`` bool, the brain.
    conditioner:
        Makes the condition of the unified volume's slabs.
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
        """From a prepared scan of another site, ``(X, Y, Z)`` unit intensity."""
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
        """From a prepared scan of the target site, which the global model is shown in the style that ``styled`` gives
        it.

        What the global model leaves of the scan's noise must not be what is to be reconstructed: noise of the scan's
        own level is added to what the model sees and taken from the target, after which the two are independent
        (Recorrupted-to-Recorrupted: Pang et al., CVPR 2021, with alpha = 1).
        """
        noise = rng.normal(0, noise_level(scan, mask), scan.shape).astype(np.float32) * mask
        seen = cls.of_source(model, styled(scan + noise), mask, sequence, settings)
        return replace(seen, image=scan - noise, scan=scan)

    def group(self, sequence: int, config: TargetConfig, model: GlobalHarmonizer, seed: int) -> dict[str, np.ndarray]:
        """Arrays of one slice group of a :class:`TargetBatch`."""
        return slab_group(
            images={"image": self.image, "unified": self.unified, "scan": self.scan},
            conditioner=self.conditioner,
            mask=self.mask,
            sequence=sequence,
            slabs_per_plane=config.slabs_per_plane,
            model=model.model_config,
            seed=seed,
            twin=seed,
        )


def batch_of(groups: Sequence[dict[str, np.ndarray]]) -> TargetBatch:
    """Groups of equal size as one batch."""
    stacked = {}
    for name in groups[0]:
        arrays = [group[name] for group in groups]
        stacked[name] = np.stack(arrays)
    return TargetBatch.of_groups(stacked)


class TargetFineTuner(nn.Module):
    """The frozen global model with one adapter to train, and the losses of stage 2.

    Parameters
    ----------
    model:
        The global harmonizer; it is copied.
    style:
        The look of the site.
    encoder:
        Describes style; it is frozen.
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
        wear(self.model, NAME)
        self.style = style
        self.config = config
        self.settings = settings
        quantiles = torch.tensor(style.quantiles, dtype=torch.float32)
        self.register_buffer("domain_cumulative", cumulative_from_quantiles(quantiles))
        self.register_buffer("domain_moments", torch.stack([quantiles.mean(), quantiles.std()]))

    def forward(self, site: TargetBatch, source: TargetBatch, ramp: float = 1.0) -> dict[str, Tensor]:
        """Losses; ``loss`` is the weighted sum to differentiate, the others are its parts. ``ramp`` (0-1) brings
        displacement in.

        What is generated shows no noise, the site's scans do: before style is compared, noise of the site's level is
        added.
        """
        config = self.config
        site_made, site_noise = self._generate(site)
        source_made, source_noise = self._generate(source)
        # The order of these lines is the order in which gradients are summed: changing it changes last digits.
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
        """How far the sources' way through the space of styles is from the site's own, from unified to scan."""
        site_scan = self._describe(site.scan, site)
        site_unified = self._describe(site.unified, site)
        of_site = (site_scan - site_unified).mean(0).detach()
        source_generated = self._describe(source_made, source)
        source_unified = self._describe(source.unified, source).detach()
        return style_displacement(source_generated - source_unified, of_site)

    def _generate(self, batch: TargetBatch) -> tuple[Tensor, Tensor]:
        """What the adapter makes of a batch, ``(B, K, H, W)`` site unit intensity, and noise of unit variance to add to
        it.

        The adapter corrects the unified image by what it changes in the network's answer, so that one that changes
        nothing is the curve.
        """
        noise, _ = self.model.draw(batch)
        context = self.model.context(batch)

        def denoise(x: Tensor, t: int) -> Tensor:
            timesteps = torch.full((len(x),), t, device=x.device)
            return self.model.denoiser(x, timesteps, batch.condition, context)

        with torch.no_grad():
            wear(self.model, None)
            without_adapter = sample(self.model, denoise, noise, self.settings.steps)
        wear(self.model, NAME)
        with_adapter = sample(self.model, denoise, noise, self.settings.steps, self.config.last_steps)
        corrected = batch.unified + to_unit(with_adapter) - to_unit(without_adapter)
        made = self.style.apply(corrected) * batch.mask
        other_noise = noise.roll(1, 0) * batch.mask  # another slab's, which had no part in what was made
        return made, other_noise

    def state(self) -> dict[str, Tensor]:
        """What was trained, float32 on the CPU."""
        return state_of(self.model, NAME)

    def _statistics(self, image: Tensor, batch: TargetBatch) -> Tensor:
        """Mean distance of the groups' histograms and moments from the site's."""
        centre = image.shape[1] // 2
        groups = int(batch.group.max()) + 1
        centre_slices = image[:, centre]
        inside = batch.mask[:, centre]
        cumulative, moments = group_statistics(centre_slices, inside, batch.group, groups)
        distance = style_distance(cumulative, moments, self.domain_cumulative, self.domain_moments)
        return distance.mean()

    def _describe(self, image: Tensor, batch: TargetBatch) -> Tensor:
        """Style vectors ``(G, D)`` of the groups' centre slices."""
        centre = image.shape[1] // 2
        groups = int(batch.group.max()) + 1

        def by_plane(values: Tensor) -> Tensor:
            return values[:, centre].unflatten(0, (groups, 3, -1))

        return self.encoder.of_slices(by_plane(image), by_plane(batch.mask))


@dataclass(frozen=True)
class TunedAdapter:
    """Outcome of :func:`tune`: the best adapter by validation.

    Attributes
    ----------
    state:
        Its weights.
    validation:
        Name to value of its validation losses; ``loss`` decided.
    untuned:
        The same before the first step: what the curve alone does.
    steps:
        Steps after which it was the best.
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
    """Train the adapter until its validation score no longer falls.

    Parameters
    ----------
    draw:
        Batches of the site and of sources for a step.
    validation:
        Batches of images that ``draw`` never gives; the slabs' keys fix their noise.
    advance:
        Called after every step with its number, from 1, and losses.
    """
    config = tuner.config
    device = next(tuner.parameters()).device
    weights = [parameter for parameter in tuner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, config.learning_rate, weight_decay=0.0)
    untuned = _validate(tuner, validation)
    best = TunedAdapter(tuner.state(), untuned, untuned, 0)
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
                best = TunedAdapter(tuner.state(), score, untuned, steps_done)
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
    """A tenth of the steps linear warm-up, then half a cosine to 0.

    ``diffusers.optimization`` has the same curve, but begins its warm-up at a rate of 0 and multiplies in another
    order.
    """
    warm_up = max(1, config.steps // 10)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    steps_after = max(1, config.steps - warm_up)
    angle = math.pi * (step - warm_up) / steps_after
    half_cosine = 1 + math.cos(angle)
    return config.learning_rate * 0.5 * half_cosine
