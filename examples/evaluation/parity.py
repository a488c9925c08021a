"""The same figures from torch-fidelity and from sit, on the same images and weights.

    python examples/evaluation/parity.py SAMPLES REFERENCE [--weights INCEPTION.pth]

SAMPLES and REFERENCE are folders of equally large PNG files. Without --weights the official
InceptionV3 is used where torch-fidelity has cached it. What torch-fidelity does not have (sFID,
density, coverage) is left out; KID and IS use the same seed and splits on both sides.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from PIL import Image

from sitcli.features.extractors import choose_features, load_extractor
from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.inception_score import inception_score
from sitcli.metrics.kid import kernel_distance, kid_subset_size
from sitcli.metrics.moments import Moments, gaussian_of
from sitcli.metrics.neighbours import precision_recall

SEED, BATCH = 0, 16


class Folder(torch.utils.data.Dataset):
    """PNG files of a folder and those below it, as torch-fidelity takes them: uint8 CHW."""

    def __init__(self, path: Path) -> None:
        self.files = sorted(path.rglob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = np.array(Image.open(self.files[index]).convert("RGB"))
        return torch.from_numpy(image).permute(2, 0, 1)


def features_of(folder: Folder, extractor) -> np.ndarray:
    """Pool features (N, 2048) by sit's extractor."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(folder), BATCH):
            rows = range(start, min(start + BATCH, len(folder)))
            found.append(extractor.extract(torch.stack([folder[i] for i in rows]))["pool"])
    return torch.cat(found).numpy()


def gaussian(features: np.ndarray):
    """Mean and covariance as `sit evaluate` sums them up."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return gaussian_of(moments)


def main() -> None:
    """Print both and their relative difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    fake, real = Folder(arguments.samples), Folder(arguments.reference)
    chosen = choose_features("inception", {"inception": arguments.weights})
    extractor = load_extractor(chosen, torch.device("cpu"))
    a, b = features_of(fake, extractor), features_of(real, extractor)
    logits = extractor.logits(torch.from_numpy(a))
    score, _, recipe = inception_score(logits, seed=SEED, random_order=False)
    kid, _ = kernel_distance(a, b, seed=SEED)
    precision, recall = precision_recall(a, b)
    ours = {
        "FID": frechet_distance(gaussian(a), gaussian(b)),
        "IS": score,
        "KID": kid,
        "precision": precision,
        "recall": recall,
    }
    found = torch_fidelity.calculate_metrics(
        input1=fake,
        input2=real,
        cuda=False,
        batch_size=BATCH,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(chosen.path),
        feature_layer_prc="2048",
        kid_subset_size=kid_subset_size(len(a), len(b)),
        isc_splits=recipe["splits"],
        rng_seed=SEED,
        cache=False,
        verbose=False,
    )
    theirs = {
        "FID": found["frechet_inception_distance"],
        "IS": found["inception_score_mean"],
        "KID": found["kernel_inception_distance_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }
    print(f"{len(a)} samples, {len(b)} reference images, {chosen.label('FID')}")
    print(f"{'':10} {'sit':>18} {'torch-fidelity':>18} {'relative':>10}")
    for name, value in ours.items():
        other = theirs[name]
        relative = abs(value - other) / max(abs(other), 1e-30)
        print(f"{name:10} {value:18.12g} {other:18.12g} {relative:10.1e}")


if __name__ == "__main__":
    main()
