"""DINOv2 (ViT-L/14) from timm, at any input size, with EDM2's resize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from sitcli.errors import SitError
from sitcli.features.base import Extractor, Kind, last_line
from sitcli.storage.untrusted import named_tensors, read_content

DINOV2_FILE = "dinov2_vitl14_pretrain.pth"
DINOV2_URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{DINOV2_FILE}"
DINOV2_SIDE, DINOV2_PATCH = 224, 14
DINOV2_SIZES = {384: "small", 768: "base", 1024: "large"}  # width: timm's name for it


def load_dinov2(path: Path, device: torch.device) -> Extractor:
    """An extractor of the class token of a DINOv2 transformer, (B, D), as in EDM2's FD-DINOv2."""
    tokens = dinov2_tokens(path, device, DINOV2_SIDE)
    return Extractor(lambda images: {"pool": tokens(images)[:, 0].cpu()}, logits=None)


def dinov2_tokens(
    path: Path, device: torch.device, side: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function uint8 (B, 3, H, W) -> all tokens of a DINOv2 transformer, (B, 1 + n*n, D).

    The class token is the first. Images are resized to side x side by an antialiased bicubic, in
    float. The position grid is resized as in DINOv2's own code, which other libraries do
    differently. Oquab et al. 2023.
    Raises SitError if the file at `path` does not hold DINOv2's weights.
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
            f"{path} does not hold DINOv2's weights of a ViT-S, B or L/14: {last_line(error)}",
            f"the official file is {DINOV2_URL}",
        ) from None
    network = network.eval().requires_grad_(False).to(device)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network.forward_features(resized_input(images, device, side, *IMAGENET)).float()

    return tokens


# Mean and standard deviation of ImageNet's pixels.
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
    """(1, 1 + n*n, D) -> (1, 1 + side*side, D), by a bicubic of scale (side + 0.1) / n."""
    first, grid = positions[:, :1], positions[:, 1:]
    old, width = round(grid.shape[1] ** 0.5), grid.shape[2]
    scale = (side + 0.1) / old
    grid = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, width)], dim=1)


KIND = Kind(
    lambda path, device, layers: load_dinov2(path, device),
    title="DINOv2",
    file=DINOV2_FILE,
    url=DINOV2_URL,
    option="--dinov2-weights",
    facts=dict(resizes=True),
)
