"""A checkpoint opened: its facts, its weights, its network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sitcli.core.flow import Flow
from sitcli.core.prediction import Network
from sitcli.core.reversed_time import ReversedTime
from sitcli.core.wt import LossCurve
from sitcli.errors import SitError
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.meta import PAPER, REVERSED, process_from, wrong_in_meta
from sitcli.runs.run_dir import FORMAT, FORMAT_VERSION, RunDir
from sitcli.storage.files import check_version
from sitcli.storage.hub import local_path
from sitcli.storage.tensors import read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint, without its weights until they are asked for."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def latents(self) -> dict[str, Any]:
        """As `latent_facts`."""
        return self.meta["latents"]

    @cached_property
    def config(self) -> TransformerConfig:
        return TransformerConfig(**self.meta["transformer"])

    @cached_property
    def process(self) -> Flow:
        return process_from(self.meta["process"])

    @property
    def loss_curve(self) -> LossCurve | None:
        """The velocity loss over t, measured while training."""
        bins = self.meta["loss_by_t"]
        return LossCurve.from_bins(bins["sums"], bins["counts"]) if any(bins["counts"]) else None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        size = self.latents["image_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def trainable(self) -> bool:
        """Whether there is an optimizer's state to go on from; imported weights have none."""
        return "lineage" not in self.meta and "power_ema" not in self.meta

    @property
    def kinds(self) -> list[str]:
        """Which weights are here: model and ema; of imported or made ones perhaps one of them."""
        both = ["model", "ema"]
        if self.trainable:
            return both
        return [which for which in both if self._file(which).exists()]

    def weights(self, which: str) -> dict[str, Tensor]:
        """'ema' or 'model'. SitError if they are not there, or the file is damaged."""
        if self.kinds not in ([], ["model", "ema"], [which]):
            (other,) = self.kinds
            raise SitError(f"{self.path} holds no {which} weights", f"--weights {other}")
        return self.tensors(self._file(which).name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of the file `name` of this checkpoint. SitError if it cannot be read."""
        return read_tensors(self.path / name, hint=without(self.path))

    def _file(self, which: str) -> Path:
        return self.path / f"{which}.safetensors"

    def network(
        self, which: str, device: torch.device, *, dtype: torch.dtype = torch.float32
    ) -> Network:
        """The network in eval mode with these weights, fed times with t = 0 at the data.

        dtype: what matrix products are to run in. SitError if the weights do not fit.
        """
        try:
            network = build_network(self.config, self.weights(which), device, dtype=dtype)
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()
            raise SitError(f"{self.path}: the weights do not fit the network: {line}") from None
        convention = self.meta.get("time_convention", PAPER)
        if convention == REVERSED:
            return ReversedTime(network, prediction=self.process.prediction)
        if convention != PAPER:
            raise SitError(f"{self.path} names a time convention '{convention}' sit does not know")
        return network

    def autoencoder_arrays(self) -> dict[str, np.ndarray]:
        """What the autoencoder needs beside its spec."""
        path = self.path / "autoencoder.safetensors"
        if not path.exists():
            return {}
        return {name: tensor.numpy() for name, tensor in self.tensors(path.name).items()}


def build_network(
    config: TransformerConfig,
    weights: dict[str, Tensor],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """The network for evaluation with these very tensors; RuntimeError if they do not fit.

    The modulation of its blocks is made one product, of a copy of their weights.
    dtype: that of the weights of the blocks' matrix products, as autocast would turn them to in
    each evaluation; it changes nothing that is computed under autocast to it.
    """
    with torch.device("meta"):
        network = Transformer(config)
    network.load_state_dict(weights, assign=True)
    network.modulate_at_once()
    for module in network.blocks.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return network.to(device).eval().requires_grad_(False)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at a step's folder, or the newest of a run; of the hub too (hf:OWNER/NAME).

    Raises SitError if there is none or it is of a newer format.
    """
    path = local_path(path)
    if not path.exists():
        raise SitError(f"there is no run or checkpoint {path}", "name a folder below runs/")
    if (path / "meta.json").exists():
        step = path
    else:
        step = RunDir(path).newest()
        if step is None:
            raise SitError(f"{path} holds no complete checkpoint", "make one: sit train")
    try:
        meta = json.loads((step / "meta.json").read_text())
    except OSError as error:
        raise SitError(f"cannot read {step / 'meta.json'}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SitError(f"{step / 'meta.json'} is damaged", without(step)) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise SitError(f"{step} is not a checkpoint", "name a folder below runs/")
    version = meta.get("format_version", 0)
    if not isinstance(version, int):
        raise SitError(f"{step / 'meta.json'} is damaged", without(step))
    check_version(step, version, FORMAT_VERSION)
    if wrong := wrong_in_meta(meta):
        raise SitError(f"{step / 'meta.json'} is damaged: {wrong}", without(step))
    return Checkpoint(step, meta)


def without(step: Path) -> str:
    return f"name an older step, or remove {step} to go on from the one before it"
