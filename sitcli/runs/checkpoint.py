"""Open checkpoints: their facts, weights and networks."""

from __future__ import annotations

import json
import math
import shlex
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
from sitcli.latents.scaling import Scaling
from sitcli.machine.seeds import UNRECORDED
from sitcli.model.config import TransformerConfig
from sitcli.model.lora import merged
from sitcli.model.transformer import Transformer, weightless
from sitcli.runs.history import History, history_in
from sitcli.runs.meta import PAPER, REVERSED, process_from, wrong_in_meta
from sitcli.runs.run_dir import FORMAT, FORMAT_VERSION, RunDir
from sitcli.storage.files import check_version, checksum_holds
from sitcli.storage.hub import local_path
from sitcli.storage.tensors import identity, read_tensors

# Relative. Factors that sum to 1 do so to 1e-13; a float32 weight itself is rounded by 6e-8.
LARGEST_SUM_ERROR = 1e-6


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint; its weights are read only when they are asked for.

    path: the folder of its step. meta: the contents of meta.json, checked.
    """

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """The training step at which it was saved."""
        return self.meta["step"]

    @property
    def latents(self) -> dict[str, Any]:
        """The facts about the latents it was trained on, see `latent_facts`."""
        return self.meta["latents"]

    @property
    def scaling(self) -> Scaling:
        """How the latents it was trained on are normalised."""
        return Scaling.of(self.latents)

    @cached_property
    def config(self) -> TransformerConfig:
        """The network's configuration."""
        return TransformerConfig(**self.meta["transformer"])

    @cached_property
    def process(self) -> Flow:
        """The process it was trained with, SiT's or DiT's."""
        return process_from(self.meta["process"])

    @property
    def loss_curve(self) -> LossCurve | None:
        """The velocity loss over t as measured in training, None if it was not measured."""
        bins = self.meta["loss_by_t"]
        return LossCurve.from_bins(bins["sums"], bins["counts"]) if any(bins["counts"]) else None

    @property
    def history(self) -> History:
        """What its training changed on the way."""
        return history_in(self.meta)

    @property
    def images_seen(self) -> int:
        """How many images its training has drawn."""
        settings = self.meta.get("settings", {})
        return self.meta.get("images_seen", self.step * settings.get("batch_size", 0))

    @property
    def streams_name(self) -> str:
        """Which random streams its training draws from: a row of `seeds.STREAMS`."""
        return self.meta.get("streams", UNRECORDED)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it makes."""
        size = self.latents["image_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def trainable(self) -> bool:
        """Whether it has an optimizer state to go on from; imported and averaged weights do not."""
        return "lineage" not in self.meta and "power_ema" not in self.meta

    @property
    def weights_warning(self) -> str | None:
        """What is wrong with averaged weights that `sit ema` of version 0.7 or earlier combined.

        Its factors did not sum to 1, so every weight is the sum times too large. They are on
        record in every version's meta.json.
        """
        made = self.meta.get("power_ema")
        if made is None:
            return None
        total = math.fsum(factor for _, _, factor in made["snapshots"])
        if abs(total - 1) < LARGEST_SUM_ERROR:
            return None
        options = dict(std=f"{made['std']:g}", step=self.step, out=self.path.parent)
        words = [f"{word}" for name, value in options.items() for word in (f"--{name}", value)]
        return (
            f"{self.path}: every weight is {total:.4g} times what the average should be, as sit "
            f"0.7 and earlier combined it; write it again: "
            f"{shlex.join(['sit', 'ema', made['run'], *words])}"
        )

    @property
    def kinds(self) -> list[str]:
        """The kinds of weights it holds: model and ema, or one of them if imported or averaged."""
        both = ["model", "ema"]
        if self.trainable:
            return both
        return [which for which in both if self.file_of(which).exists()]

    def weights(self, which: str, *, verify: bool = False) -> dict[str, Tensor]:
        """The tensors of kind `which`, 'ema' or 'model', by name; verify: see `tensors`.

        Raises SitError if they are missing or the file is damaged.
        """
        if self.kinds not in ([], ["model", "ema"], [which]):
            (other,) = self.kinds
            raise SitError(f"{self.path} holds no {which} weights", f"use --weights {other}")
        tensors = self.tensors(self.file_of(which).name, verify=verify)
        return merged(self.base(verify=verify), tensors) if "lora" in self.meta else tensors

    def base(self, *, verify: bool = False) -> dict[str, Tensor]:
        """The weights that its adapters are added to; verify: see `tensors`.

        Raises SitError if they are not there.
        """
        file = RunDir(self.path.parent).base
        hint = f"the adapters in {self.path} are nothing without it: restore it from its run"
        if not file.exists():
            raise SitError(f"there is no {file}", hint)
        if identity(file) != self.meta["lora"]["base"]:
            raise SitError(f"{file} is not what {self.path.name} was trained on", hint)
        return read_tensors(file, hint=hint, verify=verify)

    def tensors(self, name: str, *, verify: bool = False) -> dict[str, Tensor]:
        """The tensors in its file `name`; verify: compare each with its checksum, as is worth it
        where what follows goes on from them. Raises SitError if it cannot be read.
        """
        return read_tensors(self.path / name, hint=use_another_step(self.path), verify=verify)

    def file_of(self, which: str) -> Path:
        """The file of the weights of kind `which`."""
        return self.path / f"{which}.safetensors"

    def network(
        self, which: str, device: torch.device, *, dtype: torch.dtype = torch.float32
    ) -> Network:
        """The network in eval mode with the weights `which`; it takes times with t = 0 at the data.

        dtype: the type of its matrix products.
        Raises SitError if the weights are missing, damaged or do not fit.
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
            raise SitError(f"{self.path} has a time convention '{convention}', unknown to sit")
        return network

    def autoencoder_arrays(self) -> dict[str, np.ndarray]:
        """The autoencoder's own arrays by name, {} for most autoencoders."""
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
    """The network in eval mode with the given tensors as its weights.

    The modulations of all blocks become one product, with a copy of their weights. dtype: the type
    of the weights in the blocks' matrix products. Converting them here saves autocast to the same
    type the conversion in each evaluation, and does not change the result.
    Raises RuntimeError if the tensors do not fit.
    """
    network = weightless(config)
    network.load_state_dict(weights, assign=True)
    network.modulate_at_once()
    for module in network.blocks.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return network.to(device).eval().requires_grad_(False)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a step's folder, or the newest one of a run's folder.

    path: also hf:OWNER/NAME, which is fetched from the hub.
    Raises SitError if there is none, or it is damaged or of a newer format.
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
        raise SitError(f"{step / 'meta.json'} is damaged", use_another_step(step)) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise SitError(f"{step} is not a checkpoint", "name a folder below runs/")
    version = meta.get("format_version", 0)
    if not isinstance(version, int):
        raise SitError(f"{step / 'meta.json'} is damaged", use_another_step(step))
    check_version(step, version, FORMAT_VERSION)
    if wrong := wrong_in_meta(meta):
        raise SitError(f"{step / 'meta.json'} is damaged: {wrong}", use_another_step(step))
    if not checksum_holds(meta):
        raise SitError(
            f"{step / 'meta.json'} is not what sit wrote: it does not have its checksum",
            f"{use_another_step(step)}; if you edited it, remove its line 'checksum'",
        )
    return Checkpoint(step, meta)


def use_another_step(step: Path) -> str:
    """The hint for a checkpoint that cannot be used: how to go on without it."""
    return f"name an older step, or remove {step} to go on from the one before it"
