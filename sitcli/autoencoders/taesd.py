"""TAESD-style tiny autoencoders from their weights files (github.com/madebyollin/taesd, MIT).

A pair of files, ``NAME_encoder.pth`` and ``NAME_decoder.pth``, each the state dict of one plain
sequence of layers. The sequence is read off the keys, so TAESD, TAESD3, TAEF1 and TAEF2 (whose
innermost blocks have an extra GroupNorm branch) need no configuration.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from sitcli.autoencoders.base import Autoencoder, Family, wrap_network
from sitcli.errors import SitError, UsageError
from sitcli.storage.untrusted import read_weights

Weights = dict[str, torch.Tensor]
LAYER_KEY = re.compile(r"(\d+)\.(weight|bias|(?:conv|pool)\.\d\.(?:weight|bias)|skip\.weight)")
SUFFIXES = (".pth", ".pt", ".safetensors")


def is_taesd(weights: Weights) -> bool:
    """Whether these tensors are those of one TAESD encoder or decoder."""
    return bool(weights) and all(LAYER_KEY.fullmatch(key) for key in weights)


def find_encoder(folder: Path) -> Path | None:
    """The encoder's file of the only pair in the folder, None if there is no pair.

    Raises UsageError if there are several pairs.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    pairs = [f for f in files if "encoder" in f.name and _sibling(f) in files]
    if len(pairs) > 1:
        raise UsageError(
            f"{folder} holds several autoencoders", f"name a file, e.g. --vae {pairs[0]}"
        )
    return pairs[0] if pairs else None


def load(path: Path, *, name: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder in the pair of files that `path` is one of.

    name: the path the user gave. Raises SitError if a file of the pair is missing or is not laid
    out as TAESD's, or the two do not belong together.
    """
    paths = path, _sibling(path)
    if paths[0] == paths[1] or not paths[1].is_file():
        raise SitError(
            f"{path} is half of an autoencoder, and {paths[1].name} is not beside it",
            "TAESD-style weights come as NAME_encoder.pth and NAME_decoder.pth",
        )
    encoder_path, decoder_path = paths if "encoder" in path.name else reversed(paths)
    encoder = _build(_encoder_layers, encoder_path)
    decoder = _build(_decoder_layers, decoder_path)
    if not isinstance(encoder[-1], nn.Conv2d) or not isinstance(decoder[1], nn.Conv2d):
        raise SitError(f"{path} is not laid out as a TAESD-style autoencoder")
    channels = encoder[-1].out_channels
    downsample = 2 ** sum(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in encoder)
    upsample = 2 ** sum(isinstance(m, nn.Upsample) for m in decoder)
    if (channels, downsample) != (decoder[1].in_channels, upsample):
        raise SitError(f"{encoder_path} and {decoder_path.name} do not belong together")
    spec = {
        "name": str(name.resolve()),
        "class": "TAESD",
        "kind": "taesd",
        "latent_channels": channels,
        "downsample": downsample,
        "deterministic": True,
        "scaling": 1.0,
        "shift": 0.0,
    }
    # TAESD's pictures are in [0, 1], ours in [-1, 1].
    return wrap_network(
        nn.ModuleDict({"encoder": encoder, "decoder": decoder}),
        spec,
        encode=lambda images: encoder(images.add(1).div(2)),
        decode=lambda latents: decoder(latents).mul(2).sub(1),
        device=device,
        dtype=dtype,
    )


def _sibling(path: Path) -> Path:
    """x_encoder.pth <-> x_decoder.pth."""
    other = {"encoder": "decoder", "decoder": "encoder"}
    return path.with_name(re.sub("encoder|decoder", lambda m: other[m[0]], path.name))


def _build(layers_of, path: Path) -> nn.Sequential:
    weights = read_weights(path)
    try:
        network = nn.Sequential(*layers_of(weights))
        network.load_state_dict(weights, strict=True)
        # Only a trial shows whether each layer accepts the output of the layer before it.
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        with torch.no_grad():
            network.float()(torch.zeros(1, first.in_channels, 8, 8))
    except (KeyError, RuntimeError, IndexError, ValueError, TypeError, AttributeError):
        raise SitError(f"{path} is not laid out as a TAESD-style autoencoder") from None
    return network


def _encoder_layers(weights: Weights) -> list[nn.Module]:
    """The encoder's layers; convolutions without a bias halve the size."""
    return [_layer(weights, index, stride=2) for index in range(_num_layers(weights))]


def _decoder_layers(weights: Weights) -> list[nn.Module]:
    """The decoder's layers. Without weights are the clamp (0), a ReLU (2) and the upsamplings."""
    layers: list[nn.Module] = [_Clamp(), _layer(weights, 1), nn.ReLU()]
    for index in range(3, _num_layers(weights)):
        has_weights = any(key.startswith(f"{index}.") for key in weights)
        layers.append(_layer(weights, index) if has_weights else nn.Upsample(scale_factor=2))
    return layers


def _num_layers(weights: Weights) -> int:
    number = 1 + max(int(key.split(".")[0]) for key in weights)
    if number > 4 * len(weights):  # a false number in a key must not build that many layers
        raise ValueError("more layers than weights")
    return number


def _layer(weights: Weights, index: int, *, stride: int = 1) -> nn.Module:
    if f"{index}.conv.0.weight" in weights:
        width_out, width_in = weights[f"{index}.conv.0.weight"].shape[:2]
        pool = weights.get(f"{index}.pool.0.weight")
        return _Block(width_in, width_out, pool_width=0 if pool is None else pool.shape[0])
    width_out, width_in = weights[f"{index}.weight"].shape[:2]
    bias = f"{index}.bias" in weights
    return nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias, stride=1 if bias else stride)


class _Clamp(nn.Module):
    """Softly limits latents to (-3, 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    """Three convolutions beside a shortcut; `pool` sees the whole picture through GroupNorm."""

    def __init__(self, width_in: int, width_out: int, *, pool_width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
        )
        same = width_in == width_out
        self.skip = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1, bias=False)
        if pool_width:
            self.pool = nn.Sequential(
                nn.Conv2d(width_in, pool_width, 1, bias=False),
                nn.GroupNorm(4, pool_width),
                nn.ReLU(),
                nn.Conv2d(pool_width, width_in, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


FAMILY = Family(
    in_file=lambda path, weights: is_taesd(weights),
    in_folder=find_encoder,
    load=lambda path, weights, *, name, device, dtype: load(
        path, name=name, device=device, dtype=dtype
    ),
)
