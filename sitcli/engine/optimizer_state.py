"""AdamW's moments under any ZeRO stage, in files that any other stage and world size reads.

state/rank-00001-of-00004.safetensors holds the share of rank 1: 1-D float32 tensors named
"exp_avg NAME START", elements START, START+1, ... of the flattened parameter NAME. Together the
files cover every element once. Every file's metadata has the step count. DeepSpeed's own
checkpoints are pickles for one stage and world size. Its universal checkpoints need a conversion
on disk before every change, and refuse 1 <-> 3. Pieces that name their place need no conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.model.lora import file_name
from sitcli.storage.tensors import check_header, write_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
FILE_NAME = re.compile(r"rank-(\d{5})-of-(\d{5})\.safetensors")
FOLDER = "state"


class Piece(NamedTuple):
    """Elements start..stop of the flattened parameter `name` stand at `offset` of `flat`."""

    name: str
    start: int
    stop: int
    flat: Tensor  # the tensor AdamW keeps its state by
    offset: int


def pieces_of(engine: Any) -> list[Piece]:
    """The pieces that this rank's optimizer holds: all under stage 0, else its partition.

    A parameter that is not trained has none.
    """
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    pieces = []
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        name = file_name(name)
        numel = getattr(parameter, "ds_numel", parameter.numel())
        if stage == 0:
            pieces.append(Piece(name, 0, numel, parameter, 0))
        elif stage == 3:
            group, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            start = min(numel, engine.global_rank * length)  # the last partitions are padded
            stop = min(numel, start + length)
            pieces.append(
                Piece(name, start, stop, zero.fp32_partitioned_groups_flat[group], offset)
            )
        elif parameter._hp_mapping is not None:  # else other ranks have all of it
            mapping = parameter._hp_mapping
            inside, held = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
            stop = inside.start + inside.numel
            pieces.append(Piece(name, inside.start, stop, flat, held.start))
    return [piece for piece in pieces if piece.start < piece.stop]


def snapshot(
    engine: Any, *, rank: int, world_size: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies of this rank's share of the moments on the CPU, and the metadata of its file."""
    tensors, steps = {}, 0.0
    for piece in pieces_of(engine):
        state = engine.basic_optimizer.state[piece.flat]
        start, stop = piece.start, piece.stop
        if engine.zero_optimization_stage() == 0:  # everybody has everything
            length = -(-stop // world_size)
            start, stop = min(stop, rank * length), min(stop, (rank + 1) * length)
        steps = float(state.get("step", 0.0))  # none where every step so far was skipped
        inside = slice(piece.offset + start - piece.start, piece.offset + stop - piece.start)
        for moment in MOMENTS if start < stop else ():
            whole = state[moment] if state else torch.zeros_like(piece.flat)
            values = whole.flatten()[inside]
            tensors[f"{moment} {piece.name} {start}"] = values.detach().to("cpu", copy=True)
    return tensors, {"step": repr(steps)}


def write_snapshot(
    folder: Path, tensors: dict[str, Tensor], facts: dict[str, str], *, rank: int, world_size: int
) -> None:
    """Write the file of one rank in folder/state. Raises OSError if it cannot be written."""
    name = f"rank-{rank:05d}-of-{world_size:05d}.safetensors"
    write_tensors(folder / FOLDER / name, tensors, metadata=facts)


def restore(engine: Any, folder: Path) -> None:
    """Load the moments in folder/state, of any stage and world size, into the engine's optimizer.

    Raises SitError if they are missing, damaged, or of other parameters.
    """
    with ExitStack() as stack:
        files = StateFiles(folder, stack)
        base = engine.basic_optimizer
        for piece in pieces_of(engine):
            state = base.state[piece.flat]
            if not state:
                # AdamW itself begins with zeros.
                state["step"] = torch.tensor(files.step, device=_step_device(piece.flat))
                state |= {moment: torch.zeros_like(piece.flat) for moment in MOMENTS}
            inside = slice(piece.offset, piece.offset + piece.stop - piece.start)
            for moment in MOMENTS:
                values = files.read(moment, piece.name, piece.start, piece.stop)
                state[moment].view(-1)[inside].copy_(values)


def _step_device(flat: Tensor) -> torch.device:
    # The fused AdamW keeps its step count where the parameters are.
    return flat.device


class StateFiles:
    """The files in a folder's state/, which are read piece by piece.

    Raises SitError if files are missing or damaged.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder / FOLDER
        self._hint = f"remove {folder} to go on from the step before it"
        paths = {p.name: p for p in sorted(self.folder.glob("rank-*.safetensors"))}
        counts = {int(FILE_NAME.fullmatch(name)[2]) for name in paths if FILE_NAME.fullmatch(name)}
        if not counts and any(self.folder.glob("*.pt")):
            raise SitError(
                f"{folder} has the optimizer's state in the form of sit 0.2, which this version "
                "does not read",
                "it can be sampled; to train it further install sitcli 0.2, or begin a new run",
            )
        if len(counts) != 1 or len(paths) != counts.pop():
            raise SitError(
                f"cannot go on from {folder}: files of {FOLDER}/ are missing", self._hint
            )
        self._where: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        try:
            for path in paths.values():
                file = stack.enter_context(safe_open(path, "pt"))
                check_header(file)
                self.step = float(file.metadata()["step"])
                for key in file.keys():  # noqa: SIM118
                    moment, name, start = key.split(" ")
                    piece = file.get_slice(key)
                    stop = int(start) + piece.get_shape()[0]
                    self._where.setdefault((moment, name), []).append((int(start), stop, piece))
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise SitError(f"cannot read {path}: {error}", self._hint) from None

    def read(self, moment: str, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of a moment of the flattened parameter `name`, float32."""
        values = torch.empty(stop - start)
        missing = stop - start
        for first, last, piece in self._where.get((moment, name), ()):
            low, high = max(start, first), min(stop, last)
            if low < high:
                values[low - start : high - start] = piece[low - first : high - first]
                missing -= high - low
        if missing:
            raise SitError(
                f"{self.folder} lacks {missing} elements of {moment} of {name}", self._hint
            )
        return values

    def names(self) -> Iterator[tuple[str, str]]:
        """The pairs (moment, parameter) that the files hold."""
        yield from self._where
