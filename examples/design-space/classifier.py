"""A small residual network that tells the classes apart, and whose features compare images.

`sit evaluate` measures a Frechet distance in the features of InceptionV3. Where its weights are
not at hand, and on 32-pixel images that it would have to blow up ninefold, the penultimate
features of a classifier of these very classes serve to compare one choice with another.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128)
PADDING = 3  # pixels of the random shift
BATCH = 128
LR = 8e-3


class Residual(nn.Module):
    """x + two convolutions of it; the first halves the side if `stride` is 2."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(h)))


class Classifier(nn.Module):
    """uint8 (B, 3, 32, 32) -> features (B, 128), of which `head` makes class scores."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 4, 2, 1, bias=False)  # to 16 x 16
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.stages = nn.Sequential(
            Residual(WIDTHS[0], WIDTHS[0], 1),
            Residual(WIDTHS[0], WIDTHS[1], 2),
            Residual(WIDTHS[1], WIDTHS[2], 2),
        )
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1.0
        x = self.stages(F.relu(self.norm(self.stem(x))))
        return x.mean(dim=(2, 3))


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image shifted by up to PADDING pixels either way, and mirrored half of the time."""
    num, _, height, width = images.shape
    padded = F.pad(images.float(), [PADDING] * 4, mode="reflect").to(torch.uint8)
    top, left = torch.randint(2 * PADDING + 1, (2, num, 1), generator=random)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(num, 1, generator=random) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(num)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def fit(
    images: Tensor, labels: Tensor, *, epochs: float, note: Callable[[str], None]
) -> Classifier:
    """Train on uint8 (N, 3, 32, 32) and int64 (N,): AdamW, one cycle, label smoothing."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    network = Classifier(int(labels.max()) + 1).to(memory_format=torch.channels_last)
    steps = max(2, int(epochs * len(images) / BATCH))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    order, started = torch.empty(0, dtype=torch.long), time.monotonic()
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(images), generator=random)])
        batch, order = order[:BATCH], order[BATCH:]
        scores = network.head(network(augment(images[batch], random)))
        loss = F.cross_entropy(scores, labels[batch], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            left = (steps - step) * (time.monotonic() - started) / step
            note(f"classifier: step {step} of {steps}, loss {loss.item():.3f}, {left:.0f} s left")
    return network.eval()


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images whose class it tells."""
    right = [
        (network.head(network(x)).argmax(1) == y).sum().item()
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ]
    return sum(right) / len(images)
