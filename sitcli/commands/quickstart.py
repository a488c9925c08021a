"""``sit quickstart``: draws a set of pictures, then runs the four stages as a user types them.

Nothing is downloaded and no GPU is needed. Each stage is a process of its own, run from the
folder, so that the printed commands can be typed again by hand.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sitcli
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.events import Note, Progress, Result, Stage, Table
from sitcli.images.drawn import SHAPES, draw_shape
from sitcli.machine.children import Children
from sitcli.settings.tools import QuickstartSettings
from sitcli.storage.files import replacing, write_json

IMAGE_SIZE = 32
PICTURES = "shapes"
MARKER = "quickstart.json"
LAUNCH = ["-m", "sitcli"]


def draw(settings: QuickstartSettings) -> Stage:
    """Write OUT/shapes/CLASS/NNNN.png; existing pictures are kept.

    Raises UsageError if OUT holds other files or other pictures.
    """
    _claim(settings)
    total = len(SHAPES) * settings.images_per_class
    yield Note(f"drawing {total:,} pictures of {len(SHAPES)} shapes in {settings.out / PICTURES}")
    for number, (name, index) in enumerate(_pictures(settings)):
        if number % 50 == 0:
            yield Progress(done=number, total=total, unit="pictures", text=name)
        _write_picture(settings, name, index)
    yield Progress(done=total, total=total, unit="pictures")
    return Result(path=settings.out / PICTURES, data={"pictures": total})


def _pictures(settings: QuickstartSettings) -> Iterator[tuple[str, int]]:
    return ((name, index) for name in SHAPES for index in range(settings.images_per_class))


def _write_picture(settings: QuickstartSettings, name: str, index: int) -> None:
    from PIL import Image

    path = settings.out / PICTURES / name / f"{index:04d}.png"
    if path.exists():
        return
    pixels = draw_shape(name, index, size=IMAGE_SIZE, seed=settings.seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
    except OSError as error:
        raise SitError(f"cannot write {path}: {error.strerror or error}") from None


def _claim(settings: QuickstartSettings) -> None:
    """Mark OUT as a quickstart folder, or check that it is one with the same pictures."""
    drawn = {"images_per_class": settings.images_per_class, "seed": settings.seed}
    marker = settings.out / MARKER
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        if marker.exists():
            found = json.loads(marker.read_text())
        elif any(settings.out.iterdir()):
            raise UsageError(
                f"{settings.out} holds other files", "name a folder of its own: sit quickstart OUT"
            )
        else:
            found = drawn
            write_json(marker, drawn)
    except OSError as error:
        raise UsageError(f"cannot use {settings.out}: {error.strerror}") from None
    except ValueError:
        raise SitError(f"{marker} is damaged", f"delete {settings.out}, or name another") from None
    if found != drawn:
        described = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in found.items())
        raise UsageError(
            f"{settings.out} was drawn with {described}", f"use {described}, or name another folder"
        )


def commands(settings: QuickstartSettings) -> list[list[str]]:
    """The words after `sit` of the four stages, which run in OUT one after another."""
    device = [] if settings.device == "auto" else ["--device", settings.device]
    seed = ["--seed", str(settings.seed)] if settings.seed else []
    encode = f"encode-latents {PICTURES} shapes.h5 --vae patch-pca --image-size {IMAGE_SIZE}"
    # A narrow network with 16 tokens: on a CPU many small steps teach more than few large ones.
    train = (
        "train --interpolant gvp --model SiT-Mi/2 --lr 4e-3 --schedule cosine --warmup 50 "
        f"--steps {settings.steps} --batch-size 64 --precision fp32"
    )
    sample = "sample --sde --wt kl --steps 100 --cfg-scale 2 --num 80 --precision fp32"
    evaluate = "evaluate --fid --kid --features pixels"
    return [
        encode.split() + device,
        train.split() + seed + device,
        sample.split() + seed + device,
        evaluate.split() + seed + device,
    ]


def run_command(arguments: list[str], folder: Path) -> None:
    """Run `sit ARGUMENTS` in `folder`; its results go to our stderr, like its bars.

    Raises SitError with the stage's own exit code if it fails, and Interrupted if it was told to
    stop, by when it has saved its work.
    """
    # The children find this very package, installed or not.
    root = str(Path(sitcli.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with Children() as children:
        process = children.start(
            [sys.executable, *LAUNCH, *arguments],
            cwd=folder,
            stdout=sys.stderr.fileno(),
            env={**os.environ, "PYTHONPATH": path},
        )
        code = process.wait()
    if code == 0 and not children.received:
        return
    # A stage that was told to stop and failed to save has another exit code.
    number = children.received[0] if code == 0 else -code if code < 0 else code - 128
    again = "mend the error it printed above; then the same sit quickstart goes on from here"
    if number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        message = f"`sit {arguments[0]}` was stopped by signal {number}"
        raise Interrupted(message, "the same sit quickstart goes on", signal_number=number)
    command = f"`sit {shlex.join(arguments)}`"
    failure = SitError(f"{command} failed with exit code {code}", again)
    failure.exit_code = code
    raise failure


def report(settings: QuickstartSettings) -> Result:
    """The grid and the metrics of the newest evaluated sample set in OUT."""
    found = (settings.out / "samples").glob("*/metrics.json")
    metrics = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    if metrics is None:
        raise SitError(f"there are no metrics below {settings.out / 'samples'}")
    figures = json.loads(metrics.read_text())["figures"]
    rows = [[f["metric"], f"{f['value']:.4g}", _real(f)] for f in figures]
    title = "How far the samples are from the pictures, and as many real pictures from the others"
    return Result(
        tables=[Table(title=title, header=["metric", "samples", "real pictures"], rows=rows)],
        data={"figures": figures, "metrics": str(metrics)},
        path=metrics.with_name("grid.png"),
        next=f"cd {shlex.quote(str(settings.out))} && sit sample --sde --wt kl --cfg-scale 4",
    )


def _real(figure: dict[str, Any]) -> str:
    """What as many real pictures get; a dash if they are too few, or 0.7.0 measured the figure."""
    real = figure.get("real")
    return "-" if real is None else f"{real['value']:.4g}"
