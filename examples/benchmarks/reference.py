"""A plain DiT/SiT, written for comparison only: what the public trainers and samplers do.

It stands in for them in `speed.py`: float32, eager, the autoencoder in the training loop or a
.npy file per image, an average updated parameter by parameter, a network evaluated for the drift
and once more for the score in every step of the SDE. None of it is used by sit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        B, T, d = x.shape
        a, b, gate, e, f, gate2 = self.modulation(c).unsqueeze(1).chunk(6, dim=2)
        h = self.norm1(x) * (1 + b) + a
        q, k, v = self.qkv(h).reshape(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, d)
        x = x + gate * self.proj(h)
        h = self.norm2(x) * (1 + f) + e
        return x + gate2 * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class Reference(nn.Module):
    """Latents (B, C, s, s), times (B,), labels (B,) -> (B, C, s, s)."""

    def __init__(
        self, size: int, patch: int, channels: int, width: int, depth: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.patch, self.channels, self.width = patch, channels, width
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width), False)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        falling = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        angles = t[:, None] * falling
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(y)
        for block in self.blocks:
            x = block(x, c)
        a, b = self.modulation(c).unsqueeze(1).chunk(2, dim=2)
        x = self.out(self.norm(x) * (1 + b) + a)
        side, p = math.isqrt(x.shape[1]), self.patch
        x = x.reshape(-1, side, side, p, p, self.channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, self.channels, side * p, side * p)


# Our names -> its names, so that both can have the same weights.
NAMES = {
    "x_embedder.proj": "embed", "t_embedder.mlp": "time", "final_layer.linear": "out",
    "y_embedder.embedding_table": "label", "final_layer.adaLN_modulation": "modulation",
    "pos_embed": "positions", ".attn.": ".", ".mlp.": ".", "adaLN_modulation": "modulation",
}  # fmt: skip


def load(reference: Reference, state: dict[str, Tensor]) -> None:
    """Take over the weights of our network."""
    renamed = {}
    for key, value in state.items():
        for ours, its in NAMES.items():
            # The time embedding's layers are called mlp, too.
            if not (ours == ".mlp." and not key.startswith("blocks.")):
                key = key.replace(ours, its)
        renamed[key] = value
    reference.load_state_dict(renamed)


class Files(torch.utils.data.Dataset):
    """A latent and a label in a .npy file each."""

    def __init__(self, folder: Path) -> None:
        self.latents = sorted(folder.glob("latent-*.npy"))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.latents[index]
        label = np.load(path.with_name(path.name.replace("latent", "label")))
        return torch.from_numpy(np.load(path)), torch.from_numpy(label)


def trainer(
    model: Reference, folder: Path, batch_size: int, autoencoder: nn.Module | None
) -> Callable[[], None]:
    """A function that does a step; with an autoencoder it encodes images first."""
    device = model.positions.device
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    loader = torch.utils.data.DataLoader(
        Files(folder), batch_size, shuffle=True, num_workers=1, drop_last=True
    )

    def forever():
        while True:
            yield from loader

    batches = forever()

    def step() -> None:
        x, y = (part.to(device) for part in next(batches))
        if autoencoder is not None:
            size = len(x), 3, 8 * x.shape[2], 8 * x.shape[3]
            images = torch.rand(size, device=device) * 2 - 1
            with torch.no_grad():
                x = autoencoder.encode(images).latent_dist.sample().mul_(0.18215)
        hide = torch.rand(len(y), device=device) < 0.1
        y = torch.where(hide, model.label.num_embeddings - 1, y)
        t, noise = torch.rand(len(x), device=device), torch.randn_like(x)
        at = t[:, None, None, None]
        loss = (model((1 - at) * x + at * noise, t, y) - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            ours = dict(average.named_parameters())
            for name, parameter in model.named_parameters():
                ours[name].mul_(0.9999).add_(parameter.data, alpha=1 - 0.9999)
        loss.item()

    return step


@torch.no_grad()
def ode(model: Reference, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Heun from t = 1 to 0."""
    for i in range(steps):
        t, h = 1 - i / steps, 1 / steps
        first = model(x, x.new_full((len(x),), t), y)
        second = model(x - h * first, x.new_full((len(x),), t - h), y)
        x = x - h / 2 * (first + second)
    return x


@torch.no_grad()
def sde(model: Reference, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Euler-Maruyama with w = t from t = 1 to 0.04, and one last step of the mean."""
    times = [*torch.linspace(1, 0.04, steps).tolist(), 0.0]
    for t, s in pairwise(times):
        at = x.new_full((len(x),), t)
        velocity = model(x, at, y)  # the drift's evaluation
        again = model(x, at, y)  # the score's
        score = -((1 - t) * again + x) / t
        x = x - (t - s) * (velocity - t / 2 * score)
        if s:
            x = x + math.sqrt(t * (t - s)) * torch.randn_like(x)
    return x
