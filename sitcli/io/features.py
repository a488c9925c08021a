"""What images are compared by: feature extractors, their statistics, and the distances between.

torch-fidelity supplies the InceptionV3 network with TensorFlow's resize, and KID, IS, precision
and recall from features. The accumulator, the Frechet distance and the statistics files are ours.
A figure is called FID, KID or IS only when the official InceptionV3 weights made it.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from sitcli.errors import SitError, UsageError
from sitcli.io.files import hash_file, replacing
from sitcli.io.rows import lock
from sitcli.text import first_line

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
INCEPTION_HASH = "6726825d"  # first digits of the file's sha256, as torch.hub tags its files
PIXELS_SIDE = 16
NEIGHBOURS = 3
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
ADM_SPLIT = 5000

# What a damaged .npy, .npz or zip member raises, depending on which byte is wrong.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, OSError, SyntaxError)


def choose_features(name: str, weights: Path | None) -> Features:
    """Which extractor `--features` and `--features-weights` mean; reads the file's hash only.

    Raises UsageError for an unknown name, SitError when InceptionV3's weights are not here.
    """
    if weights is not None and name != "inception":
        raise UsageError(f"--features-weights belongs to --features inception, not to {name}")
    if name == "pixels":
        return Features(name="pixels", path=None, hash="")
    if name == "inception":
        path = weights or inception_path()
        if not path.is_file():
            raise _missing_inception(path, asked=weights is not None)
        return Features(name="inception", path=path, hash=_hash_of(path))
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"--features {name}: neither a known extractor nor a file",
            "use inception, pixels, or the path of a TorchScript module",
        )
    return Features(name=path.name, path=path, hash=_hash_of(path))


def inception_path() -> Path:
    """Where torch-fidelity keeps InceptionV3's weights: torch hub's folder of checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def _missing_inception(path: Path, *, asked: bool) -> SitError:
    if asked:
        return SitError(f"--features-weights {path}: no such file", f"it is {INCEPTION_FILE}")
    return SitError(
        f"InceptionV3's weights, {INCEPTION_FILE}, are not at {path}",
        f"fetch them: curl -L --create-dirs -o {path} {INCEPTION_URL} ; or give their place with "
        "--features-weights FILE; or compare offline with --features pixels (which is not FID)",
    )


def _hash_of(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None


def load_extractor(features: Features, device: torch.device) -> Extractor:
    """The extractor itself, ready on `device`. Raises SitError for a file that does not fit."""
    if features.name == "pixels":
        return Extractor(_pixels, logits=None)
    if features.name == "inception":
        return _load_inception(features.path, device)
    return _load_torchscript(features.path, device)


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> (B, at most 768): area averages on a 16 x 16 grid, in [0, 1]."""
    height, width = images.shape[2:]
    grid = (min(height, PIXELS_SIDE), min(width, PIXELS_SIDE))
    return F.adaptive_avg_pool2d(images.float() / 255, grid).flatten(1)


def _load_inception(path: Path, device: torch.device) -> Extractor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity unpickles whatever the file holds; let only tensors through to it.
        torch.load(path, weights_only=True, map_location="cpu")
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    except (
        Exception
    ) as error:  # torch raises a dozen types for a file that is not what it should be
        raise SitError(
            f"{path} does not hold InceptionV3's weights: {first_line(error)}",
            f"the official file is {INCEPTION_URL}",
        ) from None
    # A third to a half faster on a CPU.
    network = network.to(device).to(memory_format=torch.channels_last)

    def extract(images: torch.Tensor) -> torch.Tensor:
        # TF32 would change features in the third digit.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(images.to(device))[0].cpu()

    def logits(pool: torch.Tensor) -> torch.Tensor:
        # Without the bias, as the original Inception Score's graph has it.
        return pool @ network.fc.weight.detach().float().cpu().T

    return Extractor(extract, logits=logits)


def _load_torchscript(path: Path, device: torch.device) -> Extractor:
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise SitError(
            f"{path} is not a TorchScript module: {first_line(error)}",
            "write one with torch.jit.save(torch.jit.script(module), FILE)",
        ) from None

    def extract(images: torch.Tensor) -> torch.Tensor:
        try:
            output = module(images.to(device))
        except Exception as error:
            raise SitError(
                f"{path} fails on uint8 images {tuple(images.shape)}: {_last_line(error)}"
            ) from None
        if not torch.is_tensor(output) or output.shape[:1] != images.shape[:1] or output.ndim != 2:
            kind = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
            raise SitError(f"{path} must return features (images, D), but returned {kind}")
        return output.float().cpu()

    return Extractor(extract, logits=None)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def gaussian_of(moments: Moments) -> Gaussian:
    """Mean and unbiased covariance; needs two vectors."""
    if moments.num < 2:
        raise SitError(f"a covariance needs at least 2 images, there are {moments.num}")
    return Gaussian(moments.mean, moments.scatter / (moments.num - 1), moments.num)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians, |m1-m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    With S = A A^T the last trace is the nuclear norm of A1^T A2: singular values keep 1e-16 of
    the largest where square roots of eigenvalues keep 1e-8, which matters when there are fewer
    images than features. Dowson and Landau 1982; Heusel et al. 2017, eq. 6.
    """
    difference = a.mean - b.mean
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    total = np.trace(a.covariance) + np.trace(b.covariance) + difference @ difference
    # Rounding can leave a distance of zero slightly below it.
    return max(0.0, float(total - 2 * cross))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A (D, rank) with A A^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, keep] * np.sqrt(values[keep])


def kernel_distance(a: np.ndarray, b: np.ndarray, *, seed: int) -> tuple[float, float]:
    """KID's mean and spread over 100 subsets of min(1000, N) from features (N, D) float32.

    Unbiased, so slightly negative for equal distributions. Binkowski et al. 2018. The subsets and
    the estimate are torch-fidelity's; the kernel is taken in float64, since a small difference of
    cubes is left: of features around 100, float32 would leave 1e5 where 0 is right.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size = kid_subset_size(len(a), len(b))
    choose = np.random.RandomState(_numpy_seed(seed))
    estimates = []
    for _ in range(KID_SUBSETS):
        first = a[choose.choice(len(a), size, replace=False)].astype(np.float64)
        second = b[choose.choice(len(b), size, replace=False)].astype(np.float64)
        estimates.append(kernel_mmd(first, second, kid_kernel="poly"))
    return float(np.mean(estimates)), float(np.std(estimates))


def kid_subset_size(num_a: int, num_b: int) -> int:
    """Images in each of KID's subsets."""
    return min(KID_SUBSET_SIZE, num_a, num_b)


def precision_recall(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall, k = 3, from features (N, D) float32.

    Kynkaanniemi et al. 2019; on Inception's pool features, as ADM reports them. Needs 4 images on
    both sides.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    # Blocks of a thousand rows: two matrices of 1000 x N distances at a time.
    return calculate_precision_recall_part(
        torch.from_numpy(np.array(generated)), torch.from_numpy(np.array(real)), NEIGHBOURS, 1000
    )


def inception_score(
    logits: torch.Tensor, *, seed: int, ordered: bool
) -> tuple[float, float, dict[str, int | bool]]:
    """Inception Score's mean and spread over its splits, and how it was split.

    From 10,000 images on it is ADM's: splits of 5,000 in file order if that order is `ordered` by
    chance, else shuffled. Below: ten splits of a seeded shuffle. Salimans et al. 2016.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    adm = len(logits) >= 2 * ADM_SPLIT
    splits = len(logits) // ADM_SPLIT if adm else max(1, min(10, len(logits) // 2))
    shuffle = not (adm and ordered)
    result = isc_features_to_metric(logits, splits, shuffle, _numpy_seed(seed))
    recipe = {"splits": splits, "shuffled": shuffle}
    return result["inception_score_mean"], result["inception_score_std"], recipe


def _numpy_seed(seed: int) -> int:
    return seed % (1 << 32)


def save_statistics(path: Path, gaussian: Gaussian, **more: object) -> None:
    """Write an npz with `mu`, `sigma` (as ADM names them), `num` and whatever else is given.

    Raises SitError when it cannot be written, or another process is writing it.
    """
    with lock(path):
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                mean, covariance, num = gaussian
                np.savez(file, mu=mean, sigma=covariance, num=num, **more)
        except OSError as error:
            raise SitError(f"cannot write {path}: {error.strerror}") from None


def load_statistics(path: Path) -> StatisticsFile | None:
    """Mean and covariance from an npz with `mu` and `sigma`; None if it has none.

    Raises SitError for damage.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not {"mu", "sigma"} <= set(archive.files):
                return None
            rest = set(archive.files) - {"arr_0", "mu", "sigma"}
            more = {name: archive[name] for name in rest}
            mean, covariance = archive["mu"].astype(np.float64), archive["sigma"]
            covariance = covariance.astype(np.float64)
    except DAMAGE as error:
        raise SitError(f"{path} is not a readable npz: {first_line(error)}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise SitError(f"{path}: mu {mean.shape} and sigma {covariance.shape} do not fit together")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise SitError(f"{path}: mu or sigma is not finite")
    num = int(more["num"]) if "num" in more else None
    return StatisticsFile(Gaussian(mean, covariance, num), more)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which features: `inception`, `pixels` or a TorchScript file's name, and their hash.

    hash: sha256 of the weights' file, empty for pixels, which have none.
    """

    name: str
    path: Path | None
    hash: str

    @property
    def official(self) -> bool:
        """Whether figures made with them may be called FID, KID and IS."""
        return self.name == "inception" and self.hash.startswith(INCEPTION_HASH)

    @property
    def tag(self) -> str:
        """`inception:1a2b3c4d`, `pixels`."""
        return f"{self.name}:{self.hash[:8]}" if self.hash else self.name

    def label(self, metric: str) -> str:
        """What to call a figure: FID and so on, or FD[pixels] for what is not quite that."""
        if self.official:
            return metric
        return f"{dict(FID='FD', KID='KD').get(metric, metric)}[{self.tag}]"


class Extractor(NamedTuple):
    """extract: uint8 (B, 3, H, W) -> float32 (B, D) on the CPU; logits: features -> (B, classes),
    None where the features lead to no class probabilities."""

    extract: Callable[[torch.Tensor], torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor] | None


class Gaussian(NamedTuple):
    """mean (D,), covariance (D, D) float64, and of how many images (None if unknown)."""

    mean: np.ndarray
    covariance: np.ndarray
    num: int | None


class StatisticsFile(NamedTuple):
    """What an npz says; more: its other entries but `arr_0` (ADM's files have mu_s, sigma_s)."""

    gaussian: Gaussian
    more: Mapping[str, np.ndarray]


class Moments:
    """Mean and scatter matrix of vectors that come in blocks, in float64.

    Blocks are centred before they are merged (Chan, Golub and LeVeque 1979), so that a large
    common offset costs no digits.
    """

    def __init__(self, width: int) -> None:
        self.num = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, block: np.ndarray) -> None:
        """Take in vectors (B, D)."""
        if len(block) == 0:
            return
        block = np.asarray(block, np.float64)
        mean = block.mean(axis=0)
        centred = block - mean
        self._merge(len(block), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in everything `other` has seen."""
        if other.num:
            self._merge(other.num, other.mean, other.scatter)

    def _merge(self, num: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.num + num
        step = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(step, step) * (self.num * num / total)
        self.mean += step * (num / total)
        self.num = total
