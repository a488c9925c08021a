"""A run's figures for TensorBoard, and for Weights & Biases (wandb) if asked for."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from sitcli.errors import UsageError
from sitcli.storage.files import write_text
from sitcli.text import first_line

ID_FILE = "wandb-id.txt"
# wandb prints nothing and captures no output. Without a network a run waits these seconds at its
# start and its end, and never in between: wandb's own process sends the data, and leaves in the
# run directory what it could not send.
WANDB_SETTINGS: dict[str, Any] = dict(
    silent=True, console="off", init_timeout=15.0, finish_timeout=15.0
)
WANDB_VERSION = "0.27"  # the first with `finish_timeout`
UNPLOTTED = ("step", "time")


def check_wandb() -> None:
    """Raise UsageError if --wandb cannot work; called before anything is written."""
    try:
        import wandb

        wandb.Settings(**WANDB_SETTINGS)
    except (ImportError, AttributeError, ValueError):  # none, a folder called wandb, an old version
        raise UsageError(
            f"--wandb needs the package wandb, {WANDB_VERSION} or newer",
            f"pip install 'wandb>={WANDB_VERSION}', or remove --wandb",
        ) from None


class Board:
    """Scalars and pictures of one run, by step; `notes` collects lines for the user.

    folder: the run directory; it gets tb/ and, with wandb, wandb/ and wandb-id.txt.
    first_step: entries that an earlier process logged at this step and later are discarded.
    name, config: what wandb calls the run, and the settings it shows.

    With wandb, the run whose id is in wandb-id.txt goes on. wandb keeps its files in the run
    directory if there is no API key, or no network when the training begins. A failure of wandb
    never ends the training.
    """

    def __init__(
        self, folder: Path, *, first_step: int, wandb: bool, name: str, config: dict[str, Any]
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.notes: list[str] = []
        self._writer = SummaryWriter(str(folder / "tb"), purge_step=first_step)
        self._run: Any = None
        if wandb:
            with self._surviving_wandb():
                self._run = self._start_wandb(folder, name, config)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers by name; a list (a figure of every rank) by its least and its greatest.

        `step` and `time` in `values` are not logged: they are the axes.
        """
        flat: dict[str, float] = {}
        for name, value in values.items():
            if name in UNPLOTTED:
                continue
            if isinstance(value, (list, tuple)):
                if value:
                    flat |= {f"{name}/min": min(value), f"{name}/max": max(value)}
            else:
                flat[name] = value
        for name, value in flat.items():
            self._writer.add_scalar(name, value, step)
        if self._run is not None:
            with self._surviving_wandb():
                self._run.log(flat, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Log the picture of a PNG file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        if self._run is not None:
            with self._surviving_wandb():
                import wandb

                self._run.log({name: wandb.Image(pixels)}, step=step)

    def flush(self) -> None:
        """Write TensorBoard's buffer to its file; wandb sends by itself."""
        self._writer.flush()

    def close(self) -> None:
        """Flush, and end the wandb run; without a network this waits at most `finish_timeout`."""
        self._writer.close()
        if self._run is not None:
            with self._surviving_wandb():
                self._run.finish()
            self._run = None

    def _start_wandb(self, folder: Path, name: str, config: dict[str, Any]) -> Any:
        import wandb

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # wandb's own telemetry
        user = wandb.setup(wandb.Settings(**WANDB_SETTINGS)).settings
        options: dict[str, Any] = dict(
            project=user.project or "sit",
            name=name,
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=config,
        )
        mode, why = user.mode, "as the environment asks"
        if mode == "online" and not (wandb.api.api_key or user.identity_token_file):
            mode, why = "offline", "there is no API key (`wandb login` saves one)"
        if mode == "online":
            try:
                run = wandb.init(**options, settings=wandb.Settings(**WANDB_SETTINGS, mode=mode))
                self.notes.append(f"wandb: {run.url}")
                return run
            except Exception as error:
                mode, why = "offline", first_line(error)
                wandb.teardown()  # its process holds on to the id
        run = wandb.init(**options, settings=wandb.Settings(**WANDB_SETTINGS, mode=mode))
        if mode == "offline":
            files = f"{quote(str(folder))}/wandb/offline-run-*"
            self.notes.append(f"wandb: offline, {why}; send it later: wandb sync {files}")
        return run

    @contextlib.contextmanager
    def _surviving_wandb(self) -> Iterator[None]:
        """An exception of wandb in the block ends the logging to wandb, not the training."""
        try:
            yield
        except Exception as error:
            self._run = None
            self.notes.append(f"wandb: stopped, {first_line(error)}")


def _wandb_id(folder: Path) -> str:
    """The wandb id of the run directory, drawn at the first call.

    A run that is removed and trained again under its old name gets another id.
    """
    path = folder / ID_FILE
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text(encoding="utf-8").strip()
