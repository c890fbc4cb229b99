"""Train the embedded style encoder on simulated scanners.

    python -m mmh_ray.models.style.train mmh_ray/models/weights

Writes ``style.safetensors`` (backbone and aggregator) and its card ``style.md``. Each step uses a block of people, all
scanned by the same random scanners: scans of one scanner attract each other, scans of one person repel each other. Then
head and aggregator learn finer distinctions, between scanners that are pairwise alike, from statistics of slices that
are computed once. The same seed on the same machine gives the same weights. No people or scanners of the phantom
archives are used.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmh_ray.config import GridConfig, RestyleConfig, StyleConfig
from mmh_ray.imaging.intensity import correct_bias, robust_scaling
from mmh_ray.models.augmentation import restyle
from mmh_ray.models.style.contrast import spread, style_contrast
from mmh_ray.models.style.embedded import EmbeddedBackbone
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder
from mmh_ray.models.style.slice_backbone import SliceBackbone
from mmh_ray.progress import progress
from mmh_ray.shipped_weights import write_weights
from mmh_ray.simulation.anatomy import Anatomy
from mmh_ray.simulation.phantom import CANONICAL, SEQUENCES, Scanner, random_scanner, render
from mmh_ray.simulation.phantom_people import simulated_person
from mmh_ray.training import descend

PEOPLE = 48
PEOPLE_PER_STEP = 3
SCANNERS_PER_STEP = 8
SLICES = 3
"""Slices per plane in training; any number works afterwards."""
PEOPLE_SEED = 97
LEARNING_RATE = 2e-3
REFINE_POOL = 20
REFINE_PEOPLE = 4
REFINE_SCANNERS = 6
REFINE_SLICES = 5
REFINE_RATE = 1e-3
REFINE_TEMPERATURE = 0.07
CURVES = RestyleConfig(bias=0, noise=0, blur_mm=0)
"""Further random changes by half of the scanners: an intensity curve, gamma, a coarser axis."""
COMMAND = "python -m mmh_ray.models.style.train mmh_ray/models/weights"
CARD = """# Embedded style encoder

Describes the appearance of a brain scan (contrast, sharpness, noise, shading) by one vector of 96 numbers per volume,
but not the person. It is tri-planar: a small convolutional network per slice, and attention over the slices of each
plane. It works on pixels of 3 mm: finer volumes are averaged.

- command: `{command}` (one core)
- data: simulated people (ICBM-152 tissue fractions, random shapes, ages, lesions, cavities), imaged by random scanners
  in T1w and T2w alternately. Half of the scanners also change intensities by a random monotone curve. No real scan was
  used, and no person or scanner of a phantom archive.
- training: supervised contrastive loss over blocks of 3 people by 8 scanners. Then head and aggregator alone were
  trained over blocks of 4 people by 6 scanners that are pairwise alike. On held-out blocks of this kind: {figures}
- size: {size}
- SHA-256 of style.safetensors: `{sha256}`
- held-out figures: benchmarks/style-vectors.md in the repository (`python benchmarks/style.py`)

Limits: trained only on simulated T1w and T2w of skull-stripped brains in unit intensity, and on no other sequence.
"""


def block(
    people: list[Anatomy], sequence: str, grid: GridConfig, scanners: int, seed: list[int], alike: bool = False
) -> Iterator[np.ndarray]:
    """Yield scans ``(X, Y, Z)`` in unit intensity of all people by each random scanner in turn.

    ``alike``: every second scanner is three quarters the one before it, so that small differences matter.
    """
    scanner = CANONICAL
    curve = None
    for number in range(scanners):
        rng = np.random.default_rng([*seed, number])
        drawn_scanner = random_scanner(rng)
        drawn_curve = rng.integers(2**31) if rng.random() < 0.5 else None
        if alike and number % 2:
            scanner = _between(scanner, drawn_scanner)  # keeps the previous curve
        else:
            scanner = drawn_scanner
            curve = drawn_curve
        for anatomy in people:
            mask = anatomy.brain
            scan = render(anatomy, scanner, sequence, rng, grid.spacing_mm)
            scan = np.clip(robust_scaling(scan, mask).apply(scan), 0, 2) * mask
            if curve is not None:  # the same random draws, and so the same curve, for all people
                same_draws = torch.Generator().manual_seed(int(curve))
                image = torch.from_numpy(scan)
                inside = torch.from_numpy(mask)
                scan = restyle(image, inside, grid.spacing_mm, CURVES, same_draws).numpy()
            yield scan


def _between(one: Scanner, other: Scanner) -> Scanner:
    """A scanner a quarter of the way from one to another, with the field strength of the first."""
    mixed = {}
    for name in ("tr_t1", "flip", "tr_t2", "te", "gamma", "bias", "blur_mm", "noise"):
        mixed[name] = 0.75 * getattr(one, name) + 0.25 * getattr(other, name)
    return replace(one, **mixed)


def train(steps: int, seed: int, people: int = PEOPLE) -> TriPlanarStyleEncoder:
    """Train the whole encoder on blocks of people and scanners."""
    grid = GridConfig()
    config = StyleConfig(slices=SLICES)
    torch.manual_seed(seed)
    encoder = TriPlanarStyleEncoder(EmbeddedBackbone(), config, grid.spacing_mm)
    pool = [simulated_person(PEOPLE_SEED, number, grid) for number in range(people)]
    optimizer = torch.optim.AdamW(encoder.parameters(), LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    labels = torch.arange(SCANNERS_PER_STEP).repeat_interleave(PEOPLE_PER_STEP)
    with progress(steps, "Training", unit="steps") as advance:
        for step in range(steps):
            rng = np.random.default_rng([seed, step])
            chosen = [pool[index] for index in rng.choice(people, PEOPLE_PER_STEP, replace=False)]
            sequence = SEQUENCES[step % 2]
            scans = list(block(chosen, sequence, grid, SCANNERS_PER_STEP, [seed, step]))
            brains = np.stack([anatomy.brain for anatomy in chosen])
            masks = torch.from_numpy(brains).repeat(SCANNERS_PER_STEP, 1, 1, 1)
            styles = encoder(torch.from_numpy(np.stack(scans)), masks)
            loss = style_contrast(styles, labels, config.temperature)
            descend(loss, optimizer)
            schedule.step()
            advance(note=f"contrast {float(loss.detach()):.3f}")
    return encoder


class _Statistics(SliceBackbone):
    """The embedded backbone without its head."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_mm = backbone.pixel_mm
        self.dimensions = backbone.dimensions

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.backbone.statistics(images, masks)


@torch.no_grad()
def statistics_of_blocks(encoder: TriPlanarStyleEncoder, blocks: int, seed: int) -> Tensor:
    """Statistics of slices ``(blocks, B, 3, K, S)`` from scanners that are pairwise alike, T1w and T2w in turn.

    The ``B`` scans of a block are in the order of :func:`block`.
    """
    grid = GridConfig()
    config = StyleConfig(slices=REFINE_SLICES)
    without_head = TriPlanarStyleEncoder(_Statistics(encoder.backbone), config, grid.spacing_mm)
    pool = [simulated_person(PEOPLE_SEED, number, grid) for number in range(REFINE_POOL)]
    statistics = []
    with progress(blocks, "Scanning", unit="blocks") as advance:
        for number in range(blocks):
            draw = np.random.default_rng([seed, number, 1])
            people = [pool[index] for index in draw.choice(REFINE_POOL, REFINE_PEOPLE, replace=False)]
            masks = [anatomy.brain for anatomy in people] * REFINE_SCANNERS
            sequence = SEQUENCES[number % 2]
            scans = block(people, sequence, grid, REFINE_SCANNERS, [seed, number, 2], alike=True)
            corrected = [_without_bias(scan, mask, grid) for scan, mask in zip(scans, masks, strict=True)]
            images = torch.from_numpy(np.stack(corrected))
            inside = torch.from_numpy(np.stack(masks))
            statistics.append(without_head.features(images, inside))
            advance()
    return torch.stack(statistics)


def _without_bias(scan: np.ndarray, mask: np.ndarray, grid: GridConfig) -> np.ndarray:
    """The scan after N4, as prepared volumes are."""
    spacing = (grid.spacing_mm,) * 3
    corrected = correct_bias(scan, mask, spacing)
    unit = robust_scaling(corrected, mask).apply(corrected)
    return np.clip(unit, 0, 2) * mask


def refine(encoder: TriPlanarStyleEncoder, statistics: Tensor, steps: int, seed: int) -> dict[str, float]:
    """Train head and aggregator further, in place, on blocks of scanners that are alike.

    ``statistics`` come from :func:`statistics_of_blocks`. Returns figures of the held-out blocks (a fifth):
    ``contrast`` before (``contrast_before``) and after, ``spread`` after.
    """
    backbone: Any = encoder.backbone
    head = backbone.head
    aggregator = encoder.aggregator
    parameters = [*head.parameters(), *aggregator.parameters()]
    optimizer = torch.optim.AdamW(parameters, REFINE_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, REFINE_RATE, total_steps=max(1, steps), pct_start=0.1)
    scanners = torch.arange(REFINE_SCANNERS).repeat_interleave(REFINE_PEOPLE)
    held_out_blocks = max(2, len(statistics) // 10 * 2)

    def contrast(numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Contrast and style vectors of some blocks, which share no scanners."""
        styles = [aggregator(head(statistics[number])) for number in numbers]
        labels = [scanners + 100 * number for number in numbers]
        all_styles = torch.cat(styles)
        return style_contrast(all_styles, torch.cat(labels), REFINE_TEMPERATURE), all_styles

    def held_out_figures() -> tuple[float, float]:
        """Mean contrast and spread of the held-out blocks."""
        losses = []
        spreads = []
        with torch.no_grad():
            for number in range(held_out_blocks):
                loss, styles = contrast([number])
                losses.append(loss)
                spreads.append(spread(styles))
        return float(np.mean(losses)), float(np.mean(spreads))

    rng = np.random.default_rng([seed, 3])
    contrast_before, _ = held_out_figures()
    for _ in range(steps):
        first = held_out_blocks + rng.integers(2)
        of_one_sequence = np.arange(first, len(statistics), 2)
        count = min(2, len(of_one_sequence))
        chosen = rng.choice(of_one_sequence, count, replace=False)
        loss, _ = contrast(chosen.tolist())
        descend(loss, optimizer)
        schedule.step()
    contrast_after, spread_after = held_out_figures()
    return {"contrast": contrast_after, "spread": spread_after, "contrast_before": contrast_before}


def save(folder: Path, encoder: TriPlanarStyleEncoder, figures: dict[str, float], command: str) -> None:
    """Write the weights and their card."""
    state = {name: weight.contiguous() for name, weight in encoder.state_dict().items()}
    named_figures = [f"{name} {figure:.3f}" for name, figure in figures.items()]
    facts = {
        "command": command,
        "figures": ", ".join(named_figures),
    }
    path = folder / "style.safetensors"
    write_weights(path, state, CARD, facts)


def main() -> None:
    """Train, refine and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=160, help="of the whole encoder")
    parser.add_argument("--blocks", type=int, default=60, help="seen while head and aggregator are refined")
    parser.add_argument("--refine-steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    encoder = train(arguments.steps, arguments.seed)
    statistics = statistics_of_blocks(encoder, arguments.blocks, arguments.seed)
    figures = refine(encoder, statistics, arguments.refine_steps, arguments.seed)
    options = f"--steps {arguments.steps} --blocks {arguments.blocks} --refine-steps {arguments.refine_steps}"
    save(arguments.folder, encoder, figures, f"{COMMAND} {options} --seed {arguments.seed}")


if __name__ == "__main__":
    main()
