"""Train the brain extraction network on simulated heads.

    python -m mmh_ray.simulation.train_brain mmh_ray/imaging/weights --label-maps DIR

Writes ``brain.safetensors`` and its card ``brain.md``. Whole heads are simulated from label maps in FreeSurfer's
numbering, with random shapes, contrasts, fields, resolutions and cuts. The last four maps are kept for validation. A
checkpoint is saved every five minutes; the same command continues from it. The same seed on the same machine gives the
same weights. No real scan is used.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from scipy import ndimage
from torch import Tensor

from mmh_ray.config import GridConfig
from mmh_ray.imaging.brain_extractor import REACH_MM, SPACING_MM, BrainExtractor
from mmh_ray.imaging.head import largest
from mmh_ray.progress import progress
from mmh_ray.provenance import whole_file
from mmh_ray.shipped_weights import write_weights
from mmh_ray.simulation.label_maps import label_maps_in
from mmh_ray.simulation.whole_heads import whole_head
from mmh_ray.training import descend, learning_rate_share, update_average

GRID = GridConfig(spacing_mm=SPACING_MM, shape=(64, 80, 80))
VALIDATION_MAPS = 4
VALIDATION_HEADS = 16
VALIDATION_SEED = 3_000_000
TRAINING_SEED = 1_000_000
POOL = 18
"""Heads to choose from: simulating one takes longer than a training step, so each is used about six times."""
STEPS_PER_HEAD = 6
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 50
WEIGHT_DECAY = 1e-4
AVERAGE = 0.999
"""Decay of the moving average of the weights; the average is shipped."""
NEAR_MM = 6.0
"""Distance from the surface within which errors have more weight."""
NEAR_WEIGHT = 5.0
"""Weight of these errors."""
VALIDATE_EVERY = 500
CHECKPOINT_SECONDS = 300
COMMAND = "python -m mmh_ray.simulation.train_brain mmh_ray/imaging/weights --label-maps DIR"
CARD = """# Brain extractor

Finds the brain in a head of any contrast. It is a U-Net of 3-D convolutions at {spacing:g} mm that estimates the
distance to the surface of the brain, including the fluid around it.

- command: `{command} --steps {steps} --seed {seed}` (one core, {hours:.1f} hours), started at {start}
- data: simulated whole heads, made from {maps} label maps in FreeSurfer's numbering, with random shapes and tilts.
  Protocols are those of T1w, T2w, FLAIR and PDw; a third have contrasts of no sequence. Scans have bias fields, thick
  slices, ringing, ghosts and noise, and neck, face, skull or top may be missing. No real scan was used.
- held-out people ({held_out} other label maps, {heads} heads): Dice {dice:.4f} on average, {worst:.4f} at worst
- size: {size}
- SHA-256 of brain.safetensors: `{sha256}`
"""

Example = tuple[Tensor, Tensor]
"""A scaled head and the distance from its brain's surface, ``(1, X, Y, Z)`` each."""


@dataclass
class Training:
    """The state of a training."""

    network: BrainExtractor
    average: BrainExtractor
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, seed: int, weights: Path | None = None) -> Training:
        """Start from random weights, or from those in a file."""
        torch.manual_seed(seed)
        network = BrainExtractor()
        if weights:
            network.load_state_dict(safetensors.torch.load(weights.read_bytes()))
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        return cls(network, copy.deepcopy(network).eval(), optimizer)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with whole_file(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.seconds = state["seconds"]


def train(label_maps: tuple[str, ...], steps: int, seed: int, checkpoint: Path, start: Path | None = None) -> Training:
    """Train up to a number of steps, from the checkpoint if it exists, else from ``start`` if given."""
    training = Training.start(seed, start)
    if checkpoint.exists():
        training.load(checkpoint)
    validation = validation_heads(label_maps[-VALIDATION_MAPS:])
    heads = _heads(label_maps[:-VALIDATION_MAPS], seed, training.step)
    begun = saved = time.monotonic()
    before = training.seconds
    with progress(steps, "Training", unit="steps") as advance:
        advance(training.step)
        while training.step < steps:
            loss = _take_step(training, next(heads), steps)
            training.seconds = before + time.monotonic() - begun
            advance(note=f"error {loss:.2f} mm")
            if training.step % VALIDATE_EVERY == 0 or training.step == steps:
                overlaps = dice(training.average, validation)
                logging.info("step %d: Dice %.4f, at worst %.4f", training.step, np.mean(overlaps), min(overlaps))
            if time.monotonic() - saved > CHECKPOINT_SECONDS or training.step == steps:
                training.save(checkpoint)
                saved = time.monotonic()
    return training


def _take_step(training: Training, example: Example, steps: int) -> float:
    """One step on one head; returns its weighted error in mm."""
    learning_rate = LEARNING_RATE * learning_rate_share(training.step, steps, WARM_UP_STEPS)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate
    head, distance_mm = example
    is_near = distance_mm.abs() < NEAR_MM
    weight = 1 + (NEAR_WEIGHT - 1) * is_near
    predicted = training.network(head[None])[0]
    error_mm = (predicted - distance_mm).abs()
    loss = (error_mm * weight).sum() / weight.sum()
    descend(loss, training.optimizer)
    training.step += 1
    update_average(training.average, training.network, training.step, AVERAGE)
    return float(loss.detach())


def _heads(label_maps: tuple[str, ...], seed: int, step: int) -> Iterator[Example]:
    """Yield the head for each step: the newest one when it is due, else a random one of the pool; half are mirrored.

    The pool depends only on the step, so a continued training sees the same heads as an uninterrupted one.
    """
    pool: dict[int, Example] = {}
    while True:
        newest = POOL + step // STEPS_PER_HEAD
        numbers = range(newest - POOL, newest + 1)
        pool = {number: pool.get(number) or _example(label_maps, TRAINING_SEED + number) for number in numbers}
        rng = np.random.default_rng([seed, step, 3])
        number = newest if step % STEPS_PER_HEAD == 0 else int(rng.choice(numbers))
        head, distance_mm = pool[number]
        if rng.random() < 0.5:
            head, distance_mm = head.flip(1), distance_mm.flip(1)
        yield in_field_of_view((head, distance_mm), rng)
        step += 1


def in_field_of_view(example: Example, rng: np.random.Generator) -> Example:
    """Change the field of view of an example: larger, with air around the head, or cut off at the neck.

    The network's layers are normalised over the whole grid, so a network that is trained on a single shape fails on
    scans with more air.
    """
    head, distance_mm = example
    across = rng.choice((64, 64, 80))
    ahead = rng.choice((80, 80, 96))
    height = rng.choice((64, 80, 80, 96))
    field_shape = [1]
    place_of_head = [slice(None)]
    for length, field_length in zip(head.shape[1:], (across, ahead, height), strict=True):
        missing = max(0, field_length - length)
        before = int(rng.integers(0, missing + 1))
        field_shape.append(length + missing)
        place_of_head.append(slice(before, before + length))
    inner = tuple(place_of_head)
    beside_head = head[:, [0, -1]].flatten().numpy()
    nothing = np.zeros(1, np.float32)
    air = nothing if rng.random() < 0.5 else beside_head
    field = rng.choice(air, field_shape)
    field[inner] = head.numpy()
    field_distance_mm = np.full(field_shape, -REACH_MM, np.float32)
    field_distance_mm[inner] = distance_mm.numpy()
    lowest = field.shape[3] - height
    shown = torch.from_numpy(field[..., lowest:].copy())
    distance_of_shown = torch.from_numpy(field_distance_mm[..., lowest:].copy())
    return shown, distance_of_shown


def _example(label_maps: tuple[str, ...], seed: int) -> Example:
    head, distance_mm = whole_head(label_maps, seed, GRID)
    return torch.from_numpy(head)[None], torch.from_numpy(distance_mm).clamp(-REACH_MM, REACH_MM)[None]


def validation_heads(label_maps: tuple[str, ...]) -> list[Example]:
    """Heads of people who are not used for training."""
    return [_example(label_maps, VALIDATION_SEED + number) for number in range(VALIDATION_HEADS)]


@torch.no_grad()
def dice(network: BrainExtractor, heads: list[Example]) -> list[float]:
    """Dice overlap of the largest predicted part with the true brain, for each head."""
    overlaps = []
    for head, distance_mm in heads:
        inside = network(head[None])[0, 0].numpy() > 0
        predicted = ndimage.binary_fill_holes(largest(inside))
        true = distance_mm[0].numpy() > 0
        both = (predicted & true).sum()
        voxels = predicted.sum() + true.sum()
        overlaps.append(float(2 * both / voxels))
    return overlaps


def save(folder: Path, training: Training, label_maps: tuple[str, ...], seed: int, start: Path | None = None) -> None:
    """Write the weights at half precision and their card."""
    start_sha256 = hashlib.sha256(start.read_bytes()).hexdigest() if start else None
    half = {name: value.half().contiguous() for name, value in training.average.state_dict().items()}
    shipped = BrainExtractor().eval()
    shipped.load_state_dict(half)
    overlaps = dice(shipped, validation_heads(label_maps[-VALIDATION_MAPS:]))
    facts = {
        "spacing": SPACING_MM,
        "command": COMMAND,
        "steps": training.step,
        "seed": seed,
        "hours": training.seconds / 3600,
        "start": f"weights of SHA-256 `{start_sha256}`" if start else "random weights",
        "maps": len(label_maps) - VALIDATION_MAPS,
        "held_out": VALIDATION_MAPS,
        "heads": VALIDATION_HEADS,
        "dice": float(np.mean(overlaps)),
        "worst": min(overlaps),
    }
    write_weights(folder / "brain.safetensors", half, CARD, facts)


def main() -> None:
    """Run the command: train, then write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label-maps", type=Path, required=True, help="folder of *_dseg.nii.gz of whole heads")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/brain.pt"), help="file to continue from")
    parser.add_argument("--start", type=Path, help="weights (.safetensors) to start from instead of random ones")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    label_maps = label_maps_in(arguments.label_maps)
    training = train(label_maps, arguments.steps, arguments.seed, arguments.checkpoint, arguments.start)
    save(arguments.folder, training, label_maps, arguments.seed, arguments.start)


if __name__ == "__main__":
    main()
