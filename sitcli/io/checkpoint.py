"""Run directories and the checkpoints in them.

runs/NAME/
  config.yaml          every setting, resolved
  metrics.jsonl        an object per logged step; loss.png and tb/ show the same
  samples/             grids drawn while training
  step-0010000/        a checkpoint, complete in itself
    model.safetensors  the weights, official keys, float32
    ema.safetensors    their moving average
    autoencoder.safetensors   what the autoencoder needs beside its spec, if anything
    ema-std0.050.safetensors  with --power-ema: averages of power-function profile, float32;
                       of removed steps they stay in averages/
    state/             the optimizer's moments, a file a rank, for going on with any number of them
    meta.json          written last: a step without it does not count
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sitcli import __version__, names
from sitcli.core.ddpm import Diffusion
from sitcli.core.flow import Flow, Network
from sitcli.core.reversed_time import ReversedTime
from sitcli.core.wt import LossCurve
from sitcli.errors import SitError
from sitcli.io.files import check_version, replacing, sync_file, sync_folder, write_json, write_text
from sitcli.io.hub import local_path
from sitcli.io.latents import JoinedStores, LatentStore
from sitcli.model.ema import Snapshot
from sitcli.model.transformer import Transformer, TransformerConfig
from sitcli.text import first_line

FORMAT = "sit-checkpoint"
FORMAT_VERSION = 2  # 1 had DeepSpeed's pickles in state/: readable, but not to go on from
PAPER, REVERSED = "paper", "reversed"  # what the network calls t = 0: the data, or the noise
NEEDED = ("format_version", "step", "transformer", "process", "latents", "loss_by_t")
META: dict[str, type | tuple] = dict(
    step=int, transformer=dict, process=dict, latents=dict, loss_by_t=dict, model=str,
    time_convention=str, lineage=str, guided_channels=str, weights_source=dict,
)  # fmt: skip
LATENTS: dict[str, type | tuple] = dict(
    image_size=(int, list), scaling=(int, float, list), autoencoder=dict, class_names=list,
)  # fmt: skip
QUIET = ("direction", "mlp", "norm", "qk_norm", "rope", "aux_block", "align_block", "align_width")
MOST_BLOCKS, MOST_TOKENS = 1024, 1 << 16
STEP_NAME = re.compile(r"step-(\d{7,})")
SNAPSHOT_NAME = re.compile(r"ema-std(0\.\d+)\.safetensors")


def snapshot_name(std: float) -> str:
    """0.05 -> 'ema-std0.050.safetensors'."""
    return f"ema-std{std:.3f}.safetensors"


def step_name(step: int) -> str:
    """10000 -> 'step-0010000'."""
    return f"step-{step:07d}"


class RunDir:
    """The files of one run; creates nothing until asked to write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.averages = path / "averages"

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        found = [STEP_NAME.fullmatch(p.parent.name) for p in self.path.glob("step-*/meta.json")]
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = self.steps()
        return self.step_path(steps[-1]) if steps else None

    def step_path(self, step: int) -> Path:
        return self.path / step_name(step)

    def saving_path(self, step: int) -> Path:
        """Where a checkpoint is written before it counts."""
        return self.path / f".saving-{step_name(step)}"

    def partial(self) -> list[Path]:
        """Checkpoints that do not count: killed while they were written or removed."""
        removed = [p for p in self.path.glob("step-*") if STEP_NAME.fullmatch(p.name)]
        removed = [p for p in removed if not (p / "meta.json").exists()]
        return sorted([*self.path.glob(".saving-*"), *removed])

    def clean(self) -> None:
        """Remove what a killed save or removal left behind."""
        for path in self.partial():
            shutil.rmtree(path, ignore_errors=True)

    def begin_save(self, step: int) -> Path:
        """An empty folder to write the checkpoint into."""
        path = self.saving_path(step)
        shutil.rmtree(path, ignore_errors=True)
        (path / "state").mkdir(parents=True)
        return path

    def commit_save(self, step: int, meta: dict[str, Any]) -> Path:
        """Give the folder of `begin_save` its name; every file in it is on the disk already."""
        path = self.saving_path(step)
        meta = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": step, **meta}
        write_json(path / "meta.json", {**meta, "sit_version": __version__})
        sync_folder(path / "state")
        sync_folder(path)
        final = self.step_path(step)
        shutil.rmtree(final, ignore_errors=True)  # only ever one without meta.json
        path.rename(final)
        sync_folder(self.path)
        return final

    def prune(self, *, last: int, every: int) -> None:
        """Remove all but the newest `last` checkpoints and those of multiples of `every`.

        last 0 keeps all, every 0 none besides the newest.
        """
        for step in self.steps()[:-last] if last else []:
            if every and step % every == 0:
                continue
            path = self.step_path(step)
            self.keep_snapshots(step)
            # Without its meta.json it no longer counts, however far the removal gets.
            with contextlib.suppress(OSError):
                (path / "meta.json").unlink()
            shutil.rmtree(path, ignore_errors=True)

    def keep_snapshots(self, step: int) -> None:
        """Give a step's power-function averages a second name, which outlives the step."""
        for file in self.step_path(step).glob("ema-std*.safetensors"):
            kept = self.averages / step_name(step) / file.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                try:
                    os.link(file, kept)
                except OSError:  # a file system without links
                    with replacing(kept) as temporary:
                        shutil.copyfile(file, temporary)

    def snapshots(self) -> dict[Snapshot, Path]:
        """The power-function averages that are there, of complete steps and of removed ones."""
        found = {}
        complete = [self.step_path(step) for step in self.steps()]
        for folder in (*self.averages.glob("step-*"), *complete):
            match = STEP_NAME.fullmatch(folder.name)
            for file in folder.glob("ema-std*.safetensors") if match else ():
                name = SNAPSHOT_NAME.fullmatch(file.name)
                if name:
                    found[Snapshot(int(match[1]), float(name[1]))] = file
        return dict(sorted(found.items()))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged objects; a half-written last line is ignored."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        objects = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                objects.append(json.loads(line))
        return objects

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged after `step`: it will be logged again."""
        kept = [entry for entry in self.read_metrics() if entry["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in kept))

    def log_metrics(self, entry: dict[str, Any]) -> None:
        """Append one object."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def latent_facts(store: LatentStore | JoinedStores) -> dict[str, Any]:
    """What sampling and evaluation need to know of the store, kept in every checkpoint.

    store, source: of several stores the first; stores, sources: all.
    """
    return dict(
        store=str(store.path.resolve()),
        stores=[str(path.resolve()) for path in store.paths],
        fingerprint=store.fingerprint,
        source=store.source,
        sources=store.sources,
        image_size=store.image_size,
        crop=store.crop,
        kind=store.kind,
        scaling=store.scaling,
        autoencoder=store.autoencoder,
        class_names=store.class_names,
        num_items=store.num_items,
    )


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
        return read_tensors(self.path / name, hint=_without(self.path))

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


def read_tensors(path: Path, *, hint: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises SitError, with `hint`, if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        reason = error if path.exists() else "there is no such file"
        raise SitError(f"cannot read {path}: {reason}", hint) from None


def write_tensors(
    path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file of contiguous copies on the CPU, on the disk when it returns.

    OSError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.touch()
        mode = path.stat().st_mode
        copies = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(copies, path, metadata=metadata)
    except SafetensorError as error:  # the operating system's own, in other words
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from None
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(mode)  # it was made for its owner alone
    sync_file(path)


def process_from(facts: dict[str, Any]) -> Flow:
    """The process that `checkpoint_meta` wrote: DiT's if its path is the chain's, else SiT's."""
    return (Diffusion if facts["interpolant"] == Diffusion.interpolant else Flow)(**facts)


def checkpoint_meta(
    config: TransformerConfig, process: Flow, *, time_convention: str = PAPER, **more: Any
) -> dict[str, Any]:
    """The meta.json of a checkpoint: what `Checkpoint` reads back.

    time_convention: PAPER, the network is fed t with t = 0 at the data; or REVERSED, 1 - t.
    """
    facts = dict(transformer=_loud(config), process=_loud(process))
    return dict(facts, time_convention=time_convention, **more)


def _loud(described: TransformerConfig | Flow) -> dict[str, Any]:
    """Its fields, without those of QUIET at their default: older versions read such files too."""
    defaults = {field.name: field.default for field in fields(described)}
    facts = asdict(described)
    return {k: v for k, v in facts.items() if k not in QUIET or v != defaults[k]}


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
        raise SitError(f"{step / 'meta.json'} is damaged", _without(step)) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise SitError(f"{step} is not a checkpoint", "name a folder below runs/")
    version = meta.get("format_version", 0)
    if not isinstance(version, int):
        raise SitError(f"{step / 'meta.json'} is damaged", _without(step))
    check_version(step, version, FORMAT_VERSION)
    if wrong := wrong_in_meta(meta):
        raise SitError(f"{step / 'meta.json'} is damaged: {wrong}", _without(step))
    return Checkpoint(step, meta)


def wrong_in_meta(meta: dict[str, Any]) -> str:
    """The first thing that keeps a meta.json from being read, "" if nothing does."""
    if lacking := [key for key in NEEDED if key not in meta]:
        return f"no '{lacking[0]}'"
    for key, kind in META.items():
        if key in meta and not isinstance(meta[key], kind):
            return f"{key} is {str(meta[key])[:40]!r}"
    for key, kind in LATENTS.items():
        if not isinstance(meta["latents"].get(key), kind):
            return f"its latents' {key} is {str(meta['latents'].get(key))[:40]!r}"
    spec, bins = meta["latents"]["autoencoder"], meta["loss_by_t"]
    if not all(isinstance(spec.get(key), str) for key in ("name", "kind")) or "hash" not in spec:
        return "its autoencoder has no name, kind or hash"
    if lacking := [key for key in ("sums", "counts") if key not in bins]:
        return f"no '{lacking[0]}'"
    counts = [bins["sums"], bins["counts"]]
    if not all(isinstance(part, list) for part in counts) or len(counts[0]) != len(counts[1]):
        return "its loss over t"
    if not all(isinstance(number, (int, float)) for part in counts for number in part):
        return "its loss over t"
    try:
        config = TransformerConfig(**meta["transformer"])
        # A network of any other size would be built before its weights are looked at.
        if not 0 < config.depth <= MOST_BLOCKS or config.tokens > MOST_TOKENS:
            return f"a network of {config.depth} blocks and {config.tokens} tokens"
        process = process_from(meta["process"])
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        return f"its network or process: {first_line(error)}"
    for key, known in (
        ("interpolant", (*names.INTERPOLANTS, Diffusion.interpolant)),
        ("prediction", names.PREDICTIONS),
        ("loss_weight", names.LOSS_WEIGHTS),
        ("betas", names.BETAS),
        ("variance", names.VARIANCES),
    ):
        value = getattr(process, key, known[0])
        if value not in known and not (key == "betas" and isinstance(value, (list, tuple))):
            return f"its process' {key} is {str(value)[:40]!r}"
    return ""


def _without(step: Path) -> str:
    return f"name an older step, or remove {step} to go on from the one before it"
