"""Measures whether a style vector shows the scanner and not the person, by nearest neighbours among travelers.

    python benchmarks/style.py --methods histogram embedded untrained
    python benchmarks/style.py --methods biomedclip --travelers 4 --slices 3 --json biomedclip.json

Every person is scanned at every site. Scans are rendered here, with the people and scanners of `mmh phantom`, and
prepared as `mmh prepare` does (N4, known masks, no registration). Training has seen none of them: the seeds of an
archive's people are below a million and those of training above, and training draws scanners at random. Neighbours are
scans of the same sequence with the highest cosine (of quantile functions: with the smallest W2 distance).

`untrained` is the embedded architecture with random weights. `biomedclip` is BiomedCLIP's image tower (timm
vit_base_patch16_224 with a linear projection to 512), written to a folder with random weights and read from there. Any
other name is used as `style.backbone`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from open_clip.timm_model import TimmModel

from mmh_ray.config import Config, PhantomConfig, PrepareConfig, StyleConfig
from mmh_ray.distributed.phantom import plan
from mmh_ray.imaging.preprocess import prepare_volume
from mmh_ray.imaging.volume import Volume
from mmh_ray.models.style.embedded import EmbeddedBackbone
from mmh_ray.models.style.encoder import TriPlanarStyleEncoder, make_style_encoder
from mmh_ray.simulation.anatomy import simulate_anatomy
from mmh_ray.simulation.phantom import SEQUENCES, SITES, render

CONFIG = Config(prepare=PrepareConfig(register=False))
BIOMEDCLIP = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
    }
}


@dataclass(frozen=True)
class Scan:
    """A prepared scan with its person and site."""

    person: int
    site: int
    sequence: str
    image: np.ndarray
    mask: np.ndarray
    quantiles: np.ndarray


def travelers(config: PhantomConfig) -> list[Scan]:
    """Every traveler at every site in both sequences, prepared."""
    scans = []
    for subject in plan(config):
        anatomy = simulate_anatomy(subject.person, config.spacing_mm)
        for site in subject.sites:
            for position, sequence in enumerate(SEQUENCES):
                rng = np.random.default_rng([config.seed, subject.number, site, position])
                data = render(anatomy, SITES[site], sequence, rng, config.spacing_mm)
                scan = Volume(data, anatomy.affine)
                prepared = prepare_volume(scan, anatomy.brain, CONFIG.grid, CONFIG.prepare)
                scans.append(Scan(subject.number, site, sequence, prepared.image, prepared.mask, prepared.quantiles))
    return scans


def untrained_biomedclip(folder: Path) -> Path:
    """An open_clip folder of BiomedCLIP's image tower with random weights."""
    torch.manual_seed(0)
    tower = TimmModel("vit_base_patch16_224", 512, image_size=224, pool="", proj="linear", pretrained=False)
    weights = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(BIOMEDCLIP))
    return folder


def encoder_of(method: str, slices: int) -> TriPlanarStyleEncoder:
    """The encoder of a method; an unknown name is a folder or a value of `style.backbone`."""
    config, spacing = StyleConfig(slices=slices), CONFIG.grid.spacing_mm
    if method == "untrained":
        torch.manual_seed(0)
        return TriPlanarStyleEncoder(EmbeddedBackbone(), config, spacing).eval()
    if method != "biomedclip":
        return make_style_encoder(StyleConfig(backbone=method, slices=slices), spacing).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = str(untrained_biomedclip(Path(folder)))
        return make_style_encoder(StyleConfig(backbone=path, slices=slices), spacing).eval()


@torch.no_grad()
def distances(scans: list[Scan], encoder: TriPlanarStyleEncoder | None) -> np.ndarray:
    """``(n, n)`` distances of scans: one minus cosine of styles, or without encoder Euclidean of quantile functions."""
    if encoder is None:
        quantiles = np.stack([scan.quantiles for scan in scans])
        return np.linalg.norm(quantiles[:, None] - quantiles, axis=-1)
    tensors = [(torch.from_numpy(scan.image)[None], torch.from_numpy(scan.mask)[None]) for scan in scans]
    styles = torch.nn.functional.normalize(torch.cat([encoder(*pair) for pair in tensors]), dim=1).numpy()
    return 1 - styles @ styles.T


def figures(scans: list[Scan], distance: np.ndarray) -> dict[str, float]:
    """Shares of scans whose nearest neighbour is of the same site, or shows the same person."""
    site = np.array([scan.site for scan in scans])
    person = np.array([scan.person for scan in scans])
    same_site = site[:, None] == site
    same_person = person[:, None] == person

    def share(hit: np.ndarray, excluded: np.ndarray) -> float:
        nearest = np.where(excluded | np.eye(len(scans), dtype=bool), np.inf, distance).argmin(1)
        return float(hit[np.arange(len(scans)), nearest].mean())

    nobody = np.zeros_like(same_site)
    return {
        "site_other_people": share(same_site, same_person),
        "person_other_sites": share(same_person, same_site),
        "person_anywhere": share(same_person, nobody),
    }


def chances(people: int, sites: int) -> dict[str, float]:
    """The same shares for neighbours drawn at random."""
    anywhere = (sites - 1) / (sites * people - 1)
    return {"site_other_people": 1 / sites, "person_other_sites": 1 / people, "person_anywhere": anywhere}


def main() -> None:
    """Print a row per method and sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["histogram", "embedded", "untrained", "biomedclip"])
    parser.add_argument("--travelers", type=int, default=12)
    parser.add_argument("--slices", type=int, default=StyleConfig.slices)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    everything = travelers(
        PhantomConfig(sites=len(SITES), subjects_per_site=0, travelers=arguments.travelers, seed=arguments.seed)
    )
    rows = [{"method": "chance", "sequence": "any"} | chances(arguments.travelers, len(SITES))]
    for method in arguments.methods:
        encoder = None if method == "histogram" else encoder_of(method, arguments.slices)
        for sequence in SEQUENCES:
            scans = [scan for scan in everything if scan.sequence == sequence]
            rows.append({"method": method, "sequence": sequence} | figures(scans, distances(scans, encoder)))
    names = [name for name in rows[0] if name not in ("method", "sequence")]
    print(f"{'method':<16}{'':>4}" + "".join(f"{name:>20}" for name in names))
    for row in rows:
        cells = "".join(f"{row[name]:>20.3f}" for name in names)
        print(f"{row['method']:<16}{row['sequence']:>4}{cells}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
