"""Train the embedded style encoder on simulated scanners.

    python -m mmh_ray.models.train_style mmh_ray/models/weights

Writes ``style.safetensors`` (backbone and aggregator) and its card ``style.md``. Each step shows a block of people, all seen by the same
random scanners: the same scanner's scans of other people attract each other, other scanners' scans of the same person repel.
The same seed on the same machine gives the same weights. No person and no scanner of a phantom archive takes part.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from mmh_ray.config import GridConfig, RestyleConfig, StyleConfig
from mmh_ray.imaging.anatomy import Anatomy
from mmh_ray.imaging.intensity import robust_scaling
from mmh_ray.imaging.phantom import SEQUENCES, random_scanner, render
from mmh_ray.imaging.simulation import simulated_person
from mmh_ray.models.restyle import restyle
from mmh_ray.models.style import TriPlanarStyleEncoder
from mmh_ray.models.style_backbones import EmbeddedBackbone
from mmh_ray.models.style_training import spread, style_contrast
from mmh_ray.progress import progress
from mmh_ray.provenance import whole_file

PEOPLE = 48
PEOPLE_PER_STEP = 3
SCANNERS_PER_STEP = 8
SLICES = 3
"""Slices a plane while training; any number serves afterwards."""
PEOPLE_SEED = 97
LEARNING_RATE = 2e-3
CURVES = RestyleConfig(bias=0, noise=0, blur_mm=0)
"""What half of the scanners do besides their physics: a random intensity curve, gamma, a coarser axis."""
COMMAND = "python -m mmh_ray.models.train_style mmh_ray/models/weights"
GUESSING = math.log(PEOPLE_PER_STEP * SCANNERS_PER_STEP - 1)
"""Contrast of vectors that tell nothing."""
CARD = """# Embedded style encoder

Tells how a brain scan looks (contrast, sharpness, noise, shading) and not whom it shows; one vector of 96 numbers a volume. Tri-planar:
a small convolutional net per slice, attention over the slices of each plane. It looks at 3 mm pixels: finer volumes are averaged.

- command: `{command}` (one core)
- data: simulated people (ICBM-152 tissue fractions, random shapes, ages, lesions, cavities) seen by random scanners, T1w and T2w in
  turn; half of the scanners bend intensities by a random monotone curve. No real scan, nobody and no scanner of a phantom archive.
- training: supervised contrast over blocks of 3 people by 8 scanners; last tenth of the steps: {figures}
- size: {size}
- SHA-256 of style.safetensors: `{sha256}`
- held-out figures: benchmarks/2026-11-24-style.md in the repository (`python benchmarks/style.py`)

Limits: trained on simulated T1w and T2w of skull-stripped brains in unit intensity alone; other sequences were not shown to it.
"""


def block(
    people: list[Anatomy], sequence: str, grid: GridConfig, scanners: int, seed: list[int]
) -> Iterator[np.ndarray]:
    """Scans ``(X, Y, Z)`` in unit intensity of every person by every random scanner: scanners outside, people inside."""
    for number in range(scanners):
        rng = np.random.default_rng([*seed, number])
        scanner, curve = random_scanner(rng), rng.integers(2**31) if rng.random() < 0.5 else None
        for anatomy in people:
            scan, mask = render(anatomy, scanner, sequence, rng, grid.spacing_mm), anatomy.brain
            scan = np.clip(robust_scaling(scan, mask).apply(scan), 0, 2) * mask
            if curve is not None:  # the same draws, so the same curve, for everyone
                same, tensors = (
                    torch.Generator().manual_seed(int(curve)),
                    (torch.from_numpy(scan), torch.from_numpy(mask)),
                )
                scan = restyle(*tensors, grid.spacing_mm, CURVES, same).numpy()
            yield scan


def train(steps: int, seed: int, people: int = PEOPLE) -> tuple[TriPlanarStyleEncoder, dict[str, float]]:
    """A trained encoder and figures of the last tenth of its steps."""
    grid, config = GridConfig(), StyleConfig(slices=SLICES)
    torch.manual_seed(seed)
    encoder = TriPlanarStyleEncoder(EmbeddedBackbone(), config, grid.spacing_mm)
    pool = [simulated_person(PEOPLE_SEED, number, grid) for number in range(people)]
    optimizer = torch.optim.AdamW(encoder.parameters(), LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    labels = torch.arange(SCANNERS_PER_STEP).repeat_interleave(PEOPLE_PER_STEP)
    history = []
    with progress(steps, "Training", unit="steps") as advance:
        for step in range(steps):
            rng = np.random.default_rng([seed, step])
            chosen = [pool[index] for index in rng.choice(people, PEOPLE_PER_STEP, replace=False)]
            scans = np.stack(list(block(chosen, SEQUENCES[step % 2], grid, SCANNERS_PER_STEP, [seed, step])))
            masks = torch.from_numpy(np.stack([one.brain for one in chosen])).repeat(SCANNERS_PER_STEP, 1, 1, 1)
            styles = encoder(torch.from_numpy(scans), masks)
            loss = style_contrast(styles, labels, config.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            history.append((float(loss.detach()), spread(styles.detach())))
            advance(note=f"contrast {history[-1][0]:.3f}")
    last = np.mean(history[-max(1, steps // 10) :], axis=0)
    return encoder, dict(zip(("contrast", "spread"), map(float, last), strict=True))


def save(folder: Path, encoder: TriPlanarStyleEncoder, figures: dict[str, float], steps: int, seed: int) -> None:
    """Write the weights and their card."""
    weights = safetensors.torch.save({name: value.contiguous() for name, value in encoder.state_dict().items()})
    with whole_file(folder / "style.safetensors") as partial:
        partial.write_bytes(weights)
    facts = {
        "command": f"{COMMAND} --steps {steps} --seed {seed}",
        "size": f"{len(weights) / 1e6:.2f} MB, {sum(p.numel() for p in encoder.parameters()):,} parameters",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "figures": f"contrast {figures['contrast']:.3f} (guessing {GUESSING:.3f}), mean cosine distance {figures['spread']:.3f}",
    }
    with whole_file(folder / "style.md") as partial:
        partial.write_text(CARD.format(**facts), encoding="utf-8")


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    encoder, figures = train(arguments.steps, arguments.seed)
    save(arguments.folder, encoder, figures, arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
