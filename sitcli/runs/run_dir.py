"""A run directory: its files, its steps, and how a step is saved and committed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from sitcli import __version__
from sitcli.latents.scaling import needs_shift
from sitcli.model.power_ema import Snapshot
from sitcli.storage.files import replacing, sync_folder, with_checksum, write_json, write_text

FORMAT = "sit-checkpoint"
# Format 1 had DeepSpeed's pickles in state/: training cannot go on from them. Format 3 names the
# random streams of its training, which older versions do not have: they would draw other numbers.
# Format 4 has a history, adapters, or latents shifted per channel (see `needs_shift`): older
# versions would take other images, weights or latents.
FORMAT_VERSION = 4
STEP_NAME = re.compile(r"step-(\d{7,})")
SNAPSHOT_NAME = re.compile(r"ema-std(0\.\d+)\.safetensors")


def snapshot_name(std: float) -> str:
    """0.05 -> 'ema-std0.050.safetensors'."""
    return f"ema-std{std:.3f}.safetensors"


def step_name(step: int) -> str:
    """10000 -> 'step-0010000'."""
    return f"step-{step:07d}"


class RunDir:
    """The files of one run. Nothing is created before something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.averages = path / "averages"
        self.base = path / "base.safetensors"  # what the adapters of --lora are added to

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        found = [STEP_NAME.fullmatch(p.parent.name) for p in self.path.glob("step-*/meta.json")]
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> Path | None:
        """The folder of the newest complete checkpoint, None if there is none."""
        steps = self.steps()
        return self.step_path(steps[-1]) if steps else None

    def step_path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self.path / step_name(step)

    def saving_path(self, step: int) -> Path:
        """The folder in which a checkpoint is written before it counts."""
        return self.path / f".saving-{step_name(step)}"

    def partial(self) -> list[Path]:
        """The folders of incomplete checkpoints, left by a kill during writing or removal."""
        removed = [p for p in self.path.glob("step-*") if STEP_NAME.fullmatch(p.name)]
        removed = [p for p in removed if not (p / "meta.json").exists()]
        return sorted([*self.path.glob(".saving-*"), *removed])

    def clean(self) -> None:
        """Remove the incomplete checkpoints that a killed save or removal left behind."""
        for path in self.partial():
            shutil.rmtree(path, ignore_errors=True)

    def begin_save(self, step: int) -> Path:
        """An empty folder to write the checkpoint into."""
        path = self.saving_path(step)
        shutil.rmtree(path, ignore_errors=True)
        (path / "state").mkdir(parents=True)
        return path

    def commit_save(self, step: int, meta: dict[str, Any]) -> Path:
        """Complete the checkpoint in the folder of `begin_save`; returns its final folder.

        Writes meta.json and renames the folder. Every other file in it must be on the disk already.
        """
        path = self.saving_path(step)
        version = 3 if "streams" in meta else 2
        if {"history", "lora"} & meta.keys() or needs_shift(meta.get("latents", {})):
            version = FORMAT_VERSION
        meta = {"format": FORMAT, "format_version": version, "step": step, **meta}
        write_json(path / "meta.json", with_checksum({**meta, "sit_version": __version__}))
        sync_folder(path / "state")
        sync_folder(path)
        final = self.step_path(step)
        shutil.rmtree(final, ignore_errors=True)  # only ever one without meta.json
        path.rename(final)
        sync_folder(self.path)
        return final

    def prune(self, *, last: int, every: int) -> None:
        """Remove all but the newest `last` checkpoints and those of multiples of `every`.

        last 0 keeps all checkpoints; every 0 keeps the newest `last` alone.
        """
        for step in self.steps()[:-last] if last else []:
            if every and step % every == 0:
                continue
            path = self.step_path(step)
            self.keep_snapshots(step)
            # Without meta.json a checkpoint no longer counts, even if the removal is interrupted.
            with contextlib.suppress(OSError):
                (path / "meta.json").unlink()
            shutil.rmtree(path, ignore_errors=True)

    def keep_snapshots(self, step: int) -> None:
        """Link or copy a step's power-function averages to averages/, where they outlive it."""
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
        """The files of all power-function averages, of complete steps and of removed ones."""
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
        """The logged objects; a line that is not whole is ignored."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        objects = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                objects.append(json.loads(line))
        return objects

    def cut_metrics(self, step: int) -> None:
        """Remove the entries logged after `step`, since these steps will be logged again."""
        kept = [entry for entry in self.read_metrics() if entry["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in kept))

    def metrics_bytes(self) -> int:
        """The length of metrics.jsonl."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def metrics_checksum(self, length: int) -> str:
        """CRC-32, in hex, of the first `length` bytes of metrics.jsonl, or of as many as it has."""
        crc = 0
        if length:
            with open(self.metrics, "rb") as file:
                while chunk := file.read(min(1 << 22, length)):
                    crc, length = zlib.crc32(chunk, crc), length - len(chunk)
        return f"{crc:08x}"

    def log_metrics(self, entry: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
