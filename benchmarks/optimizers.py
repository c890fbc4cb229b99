"""Muon for the weights inside the U-Net against AdamW for all: validation losses on the way, from the same batches.

    make demo
    python benchmarks/optimizers.py --prepared demo/prepared --config configs/demo.yaml --steps 500

Trains twice in one process, a thread each step, with the settings' own schedule over that many steps, and prints the losses of the averaged
weights on the fixed validation groups after every fifth of the steps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from mmh_ray.config import Config, load_config
from mmh_ray.distributed.datasets import GroupMaker, UnifiedDomain, validation_batches
from mmh_ray.distributed.shards import PreparedStore
from mmh_ray.models.global_harmonizer import GlobalHarmonizer, SlabBatch
from mmh_ray.models.learner import Learner
from mmh_ray.models.muon import Muon

SHOWN = ("val_loss", "val_mse", "val_gradient", "val_consistency")


class AdamLearner(Learner):
    """Learns with AdamW alone, as before Muon."""

    def __init__(self, model: GlobalHarmonizer, config) -> None:
        super().__init__(model, config)
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizers = (
            Muon([torch.nn.Parameter(torch.zeros(1, 1))], 0.0),
            torch.optim.AdamW(model.parameters(), rate, weight_decay=decay),
        )


def train(kind: type[Learner], prepared: str, config: Config) -> None:
    """Train and print."""
    store = PreparedStore(prepared)
    domain = UnifiedDomain.of(store, config)
    maker, validation = GroupMaker(prepared, config, domain), validation_batches(prepared, config, domain)
    torch.manual_seed(config.train.seed)
    learner = kind(GlobalHarmonizer(config.model, config.train, domain.as_tensor(config.model.sequences)), config.train)
    share, busy = config.train.volumes_per_step, 0.0
    for step in range(1, config.train.steps + 1):
        batch = SlabBatch.of_groups(maker({"id": np.arange(share * (step - 1), share * step)}))
        start = time.process_time()
        learner.step(batch)
        busy += time.process_time() - start
        if step % max(1, config.train.steps // 5) == 0:
            found = learner.validate(validation)
            cells = " | ".join(f"{found[name]:.4f}" for name in SHOWN)
            print(f"| {kind.__name__} | {step} | {cells} | {busy / step:.2f} |", flush=True)


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, [f"train.steps={arguments.steps}"])
    print(f"| | step | {' | '.join(SHOWN)} | CPU s a step |\n|{'---|' * (len(SHOWN) + 3)}")
    for kind in (Learner, AdamLearner):
        train(kind, arguments.prepared, config)


if __name__ == "__main__":
    main()
