"""What images are compared by: feature extractors and their layers.

torch-fidelity supplies the InceptionV3 network with TensorFlow's resize, timm the DINOv2
transformers. A figure is called FID, sFID, KID or IS only when the official InceptionV3 weights
made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from sitcli.errors import SitError, UsageError
from sitcli.io.files import hash_file
from sitcli.io.hub import local_path
from sitcli.io.weights import named_tensors, read_content
from sitcli.text import first_line

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
INCEPTION_HASH = "6726825d"  # first digits of the file's sha256, as torch.hub tags its files
DINOV2_FILE = "dinov2_vitl14_pretrain.pth"
DINOV2_URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{DINOV2_FILE}"
DINOV2_SIDE, DINOV2_PATCH = 224, 14
DINOV2_SIZES = {384: "small", 768: "base", 1024: "large"}  # width: timm's name for it
PIXELS_SIDE = 16


def choose_features(
    name: str, weights: Path | None = None, *, dinov2_weights: Path | None = None
) -> Features:
    """Which extractor `--features` and its weights mean; reads the file's hash only.

    Raises UsageError for an unknown name, SitError when the weights are not here.
    """
    weights = weights and local_path(weights)
    dinov2_weights = dinov2_weights and local_path(dinov2_weights)
    if weights is not None and name != "inception":
        raise UsageError(f"--features-weights belongs to --features inception, not to {name}")
    if name == "pixels":
        return Features(name="pixels", path=None, hash="")
    if name == "inception":
        path = weights or _hub_file(INCEPTION_FILE)
        if not path.is_file():
            asked = "--features-weights" if weights is not None else ""
            raise _missing("InceptionV3", path, INCEPTION_URL, asked, "--features-weights")
        return Features(name="inception", path=path, hash=_hash_of(path))
    if name == "dinov2":
        path = dinov2_weights or _hub_file(DINOV2_FILE)
        if not path.is_file():
            asked = "--dinov2-weights" if dinov2_weights is not None else ""
            raise _missing("DINOv2", path, DINOV2_URL, asked, "--dinov2-weights")
        return Features(name="dinov2", path=path, hash=_hash_of(path))
    path = local_path(name)
    if not path.is_file():
        raise UsageError(
            f"--features {name}: neither a known extractor nor a file",
            "use inception, dinov2, pixels, or the path of a TorchScript module",
        )
    return Features(name=path.name, path=path, hash=_hash_of(path))


def _hub_file(name: str) -> Path:
    """Where torch hub, and torch-fidelity with it, keep a file of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _missing(what: str, path: Path, url: str, asked: str, option: str) -> SitError:
    if asked:
        return SitError(f"{asked} {path}: no such file", f"the official one is {url}")
    return SitError(
        f"{what}'s weights, {path.name}, are not at {path}",
        f"fetch them: curl -L --create-dirs -o {path} {url} ; or give their place with "
        f"{option} FILE; or compare offline with --features pixels (which is not FID)",
    )


def _hash_of(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None


def load_extractor(
    features: Features, device: torch.device, layers: Sequence[str] = ("pool",)
) -> Extractor:
    """The extractor itself, ready on `device`, for these of the features' layers.

    Raises SitError for a file that does not fit.
    """
    if features.name == "pixels":
        return Extractor(_pixels, logits=None)
    if features.name == "inception":
        return _load_inception(features.path, device, layers)
    if features.name == "dinov2":
        return _load_dinov2(features.path, device)
    module = load_torchscript(features.path, device, ("D",))
    return Extractor(lambda images: {"pool": module(images).cpu()}, logits=None)


def _pixels(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """(B, 3, H, W) uint8 -> (B, at most 768): area averages on a 16 x 16 grid, in [0, 1]."""
    height, width = images.shape[2:]
    grid = (min(height, PIXELS_SIDE), min(width, PIXELS_SIDE))
    return {"pool": F.adaptive_avg_pool2d(images.float() / 255, grid).flatten(1)}


def _load_inception(path: Path, device: torch.device, layers: Sequence[str]) -> Extractor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity unpickles whatever the file holds; let only tensors through to it.
        if not named_tensors(read_content(path)):
            raise SitError("there are no named tensors")
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
    spatial: list[torch.Tensor] = []
    if "spatial" in layers:
        # ADM's sFID: the first 7 channels of the mixed_6 convolution, flattened as TensorFlow lies.
        network.Mixed_6d.branch1x1.register_forward_hook(
            lambda module, given, output: spatial.append(
                output[:, :7].permute(0, 2, 3, 1).flatten(1).float().cpu()
            )
        )

    def extract(images: torch.Tensor) -> dict[str, torch.Tensor]:
        # TF32 would change features in the third digit.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = {"pool": network(images.to(device))[0].cpu()}
        if spatial:
            found["spatial"] = spatial.pop()
        return {layer: found[layer] for layer in layers}

    def logits(pool: torch.Tensor) -> torch.Tensor:
        # Without the bias, as the original Inception Score's graph has it.
        return pool @ network.fc.weight.detach().float().cpu().T

    return Extractor(extract, logits=logits)


def _load_dinov2(path: Path, device: torch.device) -> Extractor:
    """The class token of a DINOv2 transformer, (B, D), as EDM2's FD-DINOv2 takes it."""
    tokens = dinov2_tokens(path, device, DINOV2_SIDE)
    return Extractor(lambda images: {"pool": tokens(images)[:, 0].cpu()}, logits=None)


def dinov2_tokens(
    path: Path, device: torch.device, side: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """uint8 (B, 3, H, W) -> all tokens of a DINOv2 transformer, (B, 1 + n*n, D), class first.

    Pictures are resized to side x side by an antialiased bicubic and stay float. The position grid
    is resized as DINOv2's own code does, which no other library does alike. Oquab et al. 2023.
    """
    import timm

    state = {k: v.float() for k, v in named_tensors(read_content(path)).items()}
    state.pop("mask_token", None)
    try:
        width = state["pos_embed"].shape[2]
        name = f"vit_{DINOV2_SIZES[width]}_patch{DINOV2_PATCH}_dinov2"
        state["pos_embed"] = _resize_positions(state["pos_embed"], side // DINOV2_PATCH)
        network = timm.create_model(name, pretrained=False, img_size=side, num_classes=0)
        network.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        raise SitError(
            f"{path} does not hold DINOv2's weights of a ViT-S, B or L/14: {_last_line(error)}",
            f"the official file is {DINOV2_URL}",
        ) from None
    network = network.eval().requires_grad_(False).to(device)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network.forward_features(resized_input(images, device, side, *IMAGENET)).float()

    return tokens


# Mean and deviation of ImageNet's pixels.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resized_input(
    images: torch.Tensor,
    device: torch.device,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> normalised float32 (B, 3, side, side), antialiased bicubic."""
    resized = F.interpolate(
        images.to(device).float(), (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    mean, std = (torch.tensor(part, device=device).view(1, 3, 1, 1) for part in (mean, std))
    return (resized / 255 - mean) / std


def _resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """(1, 1 + n*n, D) -> (1, 1 + side*side, D): a bicubic whose scale is (side + 0.1) / n."""
    first, grid = positions[:, :1], positions[:, 1:]
    old, width = round(grid.shape[1] ** 0.5), grid.shape[2]
    scale = (side + 0.1) / old
    grid = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, width)], dim=1)


def load_torchscript(
    path: Path, device: torch.device, axes: tuple[str, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The file's module, of uint8 images (B, 3, S, S) to float32 (B, ...), an axis for each name.

    Raises SitError for a file that is none, and, when called, for a module that fails or returns
    anything else.
    """
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise SitError(
            f"{path} is not a TorchScript module: {first_line(error)}",
            "write one with torch.jit.save(torch.jit.script(module), FILE)",
        ) from None

    def call(images: torch.Tensor) -> torch.Tensor:
        try:
            found = module(images.to(device))
        except Exception as error:
            raise SitError(
                f"{path} fails on uint8 images {tuple(images.shape)}: {_last_line(error)}"
            ) from None
        fits = torch.is_tensor(found) and found.ndim == 1 + len(axes)
        if not fits or len(found) != len(images):
            kind = tuple(found.shape) if torch.is_tensor(found) else type(found).__name__
            shape = ", ".join(("images", *axes))
            raise SitError(f"{path} must return features ({shape}), but returned {kind}")
        return found.float()

    return call


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which features: `inception`, `dinov2`, `pixels` or a TorchScript file's name, and their hash.

    hash: sha256 of the weights' file, empty for pixels, which have none.
    """

    name: str
    path: Path | None
    hash: str

    @property
    def official(self) -> bool:
        """Whether figures made with them may be called FID, sFID, KID and IS."""
        return self.name == "inception" and self.hash.startswith(INCEPTION_HASH)

    @property
    def tag(self) -> str:
        """`inception:1a2b3c4d`, `pixels`."""
        return f"{self.name}:{self.hash[:8]}" if self.hash else self.name

    def label(self, metric: str) -> str:
        """What to call a figure: FID and so on, or FD[pixels] for what is not quite that."""
        if self.official:
            return metric
        return f"{dict(FID='FD', sFID='sFD', KID='KD').get(metric, metric)}[{self.tag}]"

    @property
    def layers(self) -> tuple[str, ...]:
        """pool: one vector an image; spatial: InceptionV3's mixed_6 map, for sFID."""
        return ("pool", "spatial") if self.name == "inception" else ("pool",)


class Extractor(NamedTuple):
    """extract: uint8 (B, 3, H, W) -> float32 (B, D) on the CPU of each layer; logits: features of
    the pool layer -> (B, classes), None where they lead to no class probabilities."""

    extract: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    logits: Callable[[torch.Tensor], torch.Tensor] | None


class Layer(NamedTuple):
    """One layer of one extractor; kept features and statistics belong to it."""

    features: Features
    name: str

    @property
    def tag(self) -> str:
        """`inception-1a2b3c4d`, `inception-1a2b3c4d-spatial`: part of a file's name."""
        tag = self.features.tag.replace(":", "-")
        return tag if self.name == "pool" else f"{tag}-{self.name}"
