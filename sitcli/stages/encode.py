"""``sit encode-latents``: images to a latent store.

Images are encoded in fixed batches, batch b being images b B to (b+1) B of the source, and a batch
that was interrupted is encoded again as a whole: an image's latent depends, in its last bits, on
its batch mates, and an interrupted store must end up identical to an unbroken one.

Of several processes each takes every W-th of the batches that are missing and writes their rows in
place. The first alone lays OUT out, writes its attributes and completes it: HDF5 must never have
the file open for writing twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import names
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.events import Event, Note, Progress, Result, Stage, Warn
from sitcli.io import find, rows
from sitcli.io.align import TIMM, Aligner, load_aligner
from sitcli.io.autoencoder import Autoencoder, fit_patch_pca, from_spec, load_autoencoder
from sitcli.io.images import BrokenImage, Source, open_source, prepare
from sitcli.io.latents import (
    FEATURES,
    FEATURES_CRC,
    PROBLEM_BYTES,
    LatentStore,
    ReadBack,
    create_store,
    encode_command,
    open_rows,
    row_checksums,
)
from sitcli.io.launch import (
    precision_name,
    quiet_libraries,
    resolve_device,
    resolve_precision,
    tune_cpu,
)
from sitcli.io.processes import World, device_name, planned_size, processors_each, world_for
from sitcli.io.ranks import from_first, led, meeting, together, until_all, watching
from sitcli.io.rows import BROKEN, DONE, MISSING, Rows
from sitcli.settings import EncodeSettings
from sitcli.text import count, format_bytes, format_shape

IMAGE_SIZE, EMBEDDED_IMAGE_SIZE = 256, 32
PCA_DEFAULTS = {"pca_patch": 4, "pca_channels": 12}
PCA_IMAGES, PCA_BATCH = 5000, 64
UNKNOWN = "known when the autoencoder is loaded"
NAMED_BROKEN = 3  # in warnings and the summary; the store names them all


def encode(settings: EncodeSettings) -> Stage:
    """Encode every image of the source into a latent store, or go on where a run stopped.

    Raises UsageError if OUT holds something made with other settings; SitError for a source that
    cannot be used or changed since OUT was begun, a full disk, or (strict) a broken image.
    """
    quiet_libraries()
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    try:
        with contextlib.ExitStack() as held:
            with meeting(world):
                settings = together(world, lambda: _resolve(settings))

                def look() -> tuple[Source | None, Rows | None]:
                    held.enter_context(rows.lock(settings.out))
                    return _look(settings)

                source, file = from_first(world, look)
                complete = file is not None and file.attrs["complete"]
                if complete:
                    yield Note(f"{settings.out} is complete already")
                else:
                    yield Note(_describe(source))
                    pace = yield from _encode_missing(settings, source, file, world)
            if world.rank:
                return Result()
            if complete:
                return _result(LatentStore(file), settings)
            yield from _complete(settings.out)
            return _result(LatentStore.open(settings.out), settings, pace=pace)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", "the same command goes on where it was", signal_number=signal.SIGINT
        ) from None


def plan(settings: EncodeSettings) -> Result:
    """What `encode` would do; reads the source and an existing OUT, writes nothing.

    Raises what `encode` would raise before its first image.
    """
    settings = _resolve(settings)
    rows.check_writable(settings.out)
    source, file = _look(settings)
    shape = _row_shape_ahead(settings, file)
    copies = 2 if settings.flip else 1
    num = file.num_rows if source is None else len(source)
    done = 0 if file is None else int(np.count_nonzero(file.written))
    size = None if shape is None else num * copies * 2 * int(np.prod(shape))
    processes = planned_size(gpus=settings.gpus, procs=settings.procs)
    summary = {
        "source": _describe(source) if source else f"{settings.source} (gone)",
        "autoencoder": settings.vae,
        "images": f"{settings.image_size} x {settings.image_size}, crop {settings.crop}",
        "rows": f"{format_shape(shape)} float16" if shape else UNKNOWN,
        "flips": "encoded too" if settings.flip else "no",
        "size": format_bytes(size) if size else UNKNOWN,
        "processes": str(processes),
        "state": f"{done} of {num} images encoded" if file else "new",
    }
    data = dataclasses.asdict(settings) | {
        "processes": processes,
        "images": num,
        "done": done,
        "row_shape": shape,
        "bytes": size,
        "num_classes": None if source is None else len(source.class_names),
    }
    return Result(summary=summary, data=data, path=settings.out)


def _resolve(settings: EncodeSettings) -> EncodeSettings:
    """Absolute paths for what the store remembers, and the defaults that depend on others."""
    embedded = settings.vae in names.EMBEDDED_VAES
    local = Path(settings.vae).expanduser()
    vae = os.path.abspath(local) if not embedded and local.exists() else settings.vae
    size = settings.image_size or (EMBEDDED_IMAGE_SIZE if embedded else IMAGE_SIZE)
    if settings.image_size is None and local.suffix == ".h5":
        size = LatentStore.open(local, allow_incomplete=True).image_size
    source = Path(os.path.abspath(settings.source.expanduser()))
    device = device_name(settings.device, gpus=settings.gpus, procs=settings.procs)
    resolved = dataclasses.replace(settings, vae=vae, image_size=size, source=source, device=device)
    align = settings.align_features
    if align is None and settings.align_weights is not None:
        raise UsageError("--align-weights means nothing without --align-features", "leave it out")
    if align not in (None, "dinov2") and not align.startswith((TIMM, "hf:")):
        align = os.path.abspath(Path(align).expanduser())
        resolved = dataclasses.replace(resolved, align_features=align)
    for name, default in PCA_DEFAULTS.items():
        given = getattr(settings, name)
        if settings.vae != "patch-pca" and given is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} means nothing to --vae {settings.vae}", "leave it out"
            )
        if settings.vae == "patch-pca" and given is None:
            resolved = dataclasses.replace(resolved, **{name: default})
    return resolved


def _look(settings: EncodeSettings) -> tuple[Source | None, Rows | None]:
    """The source, and OUT if this command is to go on with it or finds it complete.

    The source is None only where OUT is complete and the source is gone.
    """
    file = _existing(settings)
    if file is not None and file.attrs["complete"] and not settings.source.exists():
        return None, file
    source = open_source(settings.source)
    if file is None or file.attrs["source_fingerprint"] == source.fingerprint:
        return source, file
    if settings.overwrite:
        return source, None
    raise SitError(
        f"{settings.out} was begun with other images than {settings.source} holds: "
        f"{file.num_rows} then, {len(source)} now"
        + (", with other names or sizes" if file.num_rows == len(source) else ""),
        "restore the images, begin again with --overwrite, or give another name",
    )


def _existing(settings: EncodeSettings) -> Rows | None:
    """OUT, if it is a store made with these settings; None if it is absent or to be replaced."""
    out = settings.out
    if not out.exists():
        return None
    hint = "--overwrite replaces it; or give another name"
    try:
        file = open_rows(out)
        difference = _difference(file.attrs, settings)
    except SitError as error:
        if settings.overwrite:
            return None
        raise UsageError(error.message, hint) from None
    if difference is None:
        return file
    if settings.overwrite:
        return None
    flag, stored, asked = difference
    raise UsageError(
        f"{out} was made with {flag} {stored}, not {asked}",
        f"{hint}; its own command: {encode_command(file.attrs, out)}",
    )


def _difference(attrs: dict[str, Any], settings: EncodeSettings) -> tuple[str, Any, Any] | None:
    """The first setting in which a store differs from what is asked: flag, stored, asked."""
    pairs = [
        ("--vae", attrs["vae"], settings.vae),
        ("--image-size", attrs["image_size"], settings.image_size),
        ("--crop", attrs["crop"], settings.crop),
        ("flips:", attrs["flips"], settings.flip),
        (
            "--align-features",
            (attrs.get("align") or {}).get("asked", "none"),
            settings.align_features or "none",
        ),
    ]
    spec = attrs["autoencoder"]
    if settings.vae == "patch-pca" == spec["kind"]:
        pairs.append(("--pca-patch", spec["patch"], settings.pca_patch))
        pairs.append(("--pca-channels", spec["latent_channels"], settings.pca_channels))
    if settings.precision != "auto" and settings.vae not in names.EMBEDDED_VAES:
        pairs.append(("--precision", attrs["precision"], settings.precision))
    if not attrs["complete"] and not {spec["kind"], settings.vae} & set(names.EMBEDDED_VAES):
        # Weights may have moved; whether they are the same ones is found when they are loaded.
        del pairs[0]
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def _encode_missing(
    settings: EncodeSettings, source: Source, file: Rows | None, world: World
) -> Generator[Event, None, float]:
    """This rank's share of the batches that are missing in OUT; returns images per second."""
    device = together(world, lambda: resolve_device(settings.device))
    tune_cpu(device)
    autoencoder = None
    aligner = together(world, lambda: _aligner(settings, device))

    def first() -> Generator[Event, None, list[np.ndarray]]:
        nonlocal autoencoder
        if file is None:
            autoencoder = yield from _begin(settings, source, device, aligner)
        else:
            autoencoder = yield from _resume(settings, file, device, aligner)
        return _missing_batches(Rows(settings.out))

    # Found by one rank for all: the others write while a late one would look.
    missing = yield from led(world, first)
    autoencoder = together(
        world, lambda: autoencoder or _stored_autoencoder(settings, Rows(settings.out), device)
    )
    return (yield from _fill(settings, source, autoencoder, aligner, device, missing, world))


def _aligner(settings: EncodeSettings, device: torch.device) -> Aligner | None:
    if settings.align_features is None:
        return None
    return load_aligner(
        settings.align_features,
        settings.align_weights,
        image_size=settings.image_size,
        device=device,
    )


def _begin(
    settings: EncodeSettings, source: Source, device: torch.device, aligner: Aligner | None
) -> Generator[Event, None, Autoencoder]:
    """Load or fit the autoencoder and lay out OUT."""
    size = settings.image_size
    dtype = _precision(settings.vae, settings.precision, device)
    if settings.vae == "patch-pca":
        _check_divisible(size, settings.pca_patch, "patch-pca")
        chosen = np.linspace(0, len(source) - 1, min(len(source), PCA_IMAGES)).astype(int)
        yield Note(f"fitting patch-pca on {len(chosen)} images")
        autoencoder = fit_patch_pca(
            _readable(settings, source, chosen),
            patch=settings.pca_patch,
            channels=settings.pca_channels,
            device=device,
        )
    else:
        autoencoder = load_autoencoder(settings.vae, device=device, dtype=dtype)
        _check_divisible(size, autoencoder.downsample, settings.vae)
    create_store(
        settings.out,
        paths=[item.name for item in source.items],
        labels=np.array([item.label for item in source.items]),
        class_names=source.class_names,
        row_shape=_row_shape(autoencoder.spec, size),
        kind="latents" if autoencoder.deterministic else "moments",
        flips=settings.flip,
        autoencoder=autoencoder.spec,
        autoencoder_arrays=autoencoder.arrays,
        scaling=autoencoder.scaling,
        image_size=size,
        crop=settings.crop,
        source=str(settings.source),
        source_fingerprint=source.fingerprint,
        vae=settings.vae,
        batch_size=settings.batch_size,
        precision=precision_name(dtype),
        align=None if aligner is None else aligner.spec,
    )
    return autoencoder


def _resume(
    settings: EncodeSettings, file: Rows, device: torch.device, aligner: Aligner | None
) -> Generator[Event, None, Autoencoder]:
    """Load the autoencoder OUT was begun with."""
    attrs, done = file.attrs, np.count_nonzero(file.written)
    yield Note(f"going on with {settings.out}: {done} of {file.num_rows} images are encoded")
    if attrs["batch_size"] != settings.batch_size:
        yield Note(f"it was begun with --batch-size {attrs['batch_size']}, which is kept")
    if aligner is not None and aligner.spec["hash"] != attrs["align"]["hash"]:
        raise UsageError(
            f"{settings.out} was begun with other weights of {aligner.spec['name']}",
            "give those again, or begin again with --overwrite",
        )
    autoencoder = _stored_autoencoder(settings, file, device)
    if attrs["source"] != str(settings.source):
        file.set_attrs(source=str(settings.source))  # moved; its contents are the same
    return autoencoder


def _stored_autoencoder(settings: EncodeSettings, file: Rows, device: torch.device) -> Autoencoder:
    attrs = file.attrs
    embedded = attrs["autoencoder"]["kind"] in names.EMBEDDED_VAES
    return from_spec(
        attrs["autoencoder"],
        LatentStore(file).autoencoder_arrays,
        override=None if embedded else settings.vae,
        device=device,
        dtype=_precision(settings.vae, attrs["precision"], device),
    )


def _missing_batches(file: Rows) -> list[np.ndarray]:
    """The numbers of the images of each batch of which one is missing."""
    written, num, size = file.written, file.num_rows, file.attrs["batch_size"]
    batches = [np.arange(start, min(start + size, num)) for start in range(0, num, size)]
    return [batch for batch in batches if (written[batch] == MISSING).any()]


def _fill(
    settings: EncodeSettings,
    source: Source,
    autoencoder: Autoencoder,
    aligner: Aligner | None,
    device: torch.device,
    missing: list[np.ndarray],
    world: World,
) -> Generator[Event, None, float]:
    """Encode this rank's share of the missing batches; returns images per second of all ranks."""
    with (
        Rows(settings.out, writable=True) as file,
        # The fastest algorithm of the moment would differ between runs in the last bits.
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        watching(world) as check_peers,
    ):
        news = _News(file, source)
        before, start, flips = news.done, time.monotonic(), file.attrs["flips"]
        yield from news.look()
        batches = missing[world.rank :: world.size]
        read = _read_ahead(settings, source, batches, pin_memory=device.type == "cuda")
        encoded = (
            (batch, problems, _encode_batch(autoencoder, aligner, pixels, device, flips=flips))
            for batch, (pixels, problems) in zip(batches, read, strict=True)
        )
        for batch, problems, latents in _one_late(encoded) if device.type != "cpu" else encoded:
            for index, problem in zip(batch, problems, strict=True):
                if problem and settings.strict:
                    raise _strict_error(source.items[index].name, problem)
            _write_batch(file, batch, problems, latents)
            yield from news.look()
            check_peers()
        for _ in until_all(world):
            yield from news.look()
            check_peers()
        yield from news.look()
    return (news.done - before) / max(time.monotonic() - start, 1e-9)


class _News:
    """What all ranks have written so far, and what is new since the last look."""

    def __init__(self, file: Rows, source: Source) -> None:
        self.file, self.source = file, source
        self.written = file.written
        self.named = 0

    @property
    def done(self) -> int:
        return int(np.count_nonzero(self.written))

    def look(self) -> Iterator[Event]:
        before, self.written = self.written, self.file.written
        broken = np.flatnonzero((self.written == BROKEN) & (before != BROKEN))
        for index in broken[: NAMED_BROKEN - self.named]:
            self.named += 1
            (problem,) = self.file.texts("problems", [index])
            yield Warn(f"broken image {self.source.items[index].name}: {problem}")
        yield Progress(done=self.done, total=len(self.written))


@torch.no_grad()
def _encode_batch(
    autoencoder: Autoencoder,
    aligner: Aligner | None,
    pixels: torch.Tensor,
    device: torch.device,
    *,
    flips: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Latents of uint8 (B, H, W, 3) images and of the mirrored ones, and as many features.

    float16 on the device; no features without an aligner.
    """
    # Bytes travel, a quarter of the floats; a permuted view is the channels-last layout.
    given = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    images = given.float().div_(127.5).sub_(1)
    versions = [images, images.flip(3)] if flips else [images]
    latents = [autoencoder.encode(version).half() for version in versions]
    copies = [given, given.flip(3)] if flips else [given]
    features = [aligner.encode(copy).half() for copy in copies] if aligner is not None else []
    return latents, [tensor.contiguous() for tensor in features]


def _write_batch(
    file: Rows,
    batch: np.ndarray,
    problems: list[str],
    encoded: tuple[list[torch.Tensor], list[torch.Tensor]],
) -> None:
    arrays, features = ([tensor.cpu().numpy() for tensor in part] for part in encoded)
    is_broken = np.array([bool(problem) for problem in problems])
    for array in arrays:
        array[is_broken] = 0
        if not np.isfinite(array).all():
            raise SitError(
                "the autoencoder gave values that are infinite, or no numbers, in float16",
                "try --precision fp32",
            )
    kept = dict(zip(FEATURES, features, strict=False))
    for array in features:
        array[is_broken] = 0
        if not np.isfinite(array).all():
            raise SitError("the encoder of --align-features gave values that are infinite")
    if features:
        kept[FEATURES_CRC] = row_checksums(*features)
    file.write(
        batch,
        **kept,
        status=np.where(is_broken, BROKEN, DONE),
        crc32=row_checksums(*arrays),
        problems=[_shortened(problem) for problem in problems],
        **dict(zip(("latents", "latents_flipped"), arrays, strict=False)),
    )


def _shortened(text: str) -> str:
    return text.encode("utf-8", "replace")[:PROBLEM_BYTES].decode("utf-8", "ignore")


def _one_late(items: Iterator[tuple]) -> Iterator[tuple]:
    """Each item once the next is made: a GPU works on that one while this one is written."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def _complete(out: Path) -> Generator[Event, None, None]:
    """Read everything back from the disk, and declare OUT complete."""
    with Rows(out, writable=True) as file:
        store = LatentStore(file)
        if not store.num_items:
            name, problem = store.broken()[0]
            raise SitError(
                f"none of the {file.num_rows} images can be used; the first is {name}: {problem}",
                "--crop adm takes images of any size" if store.crop == "none" else "",
            )
        file.sync(forget=True)
        check = ReadBack(store)
        for count in check:
            text = f"read back {count}/{file.num_rows}"
            yield Progress(done=file.num_rows, total=file.num_rows, text=text)
        if check.damaged:
            file.write(sorted(check.damaged), status=MISSING)
            raise SitError(
                f"{len(check.damaged)} rows of {out} are not what was written; is the disk bad?",
                "the same command encodes them again",
            )
        file.set_attrs(mean=check.mean, std=check.std, checksum=check.checksum)
        file.set_attrs(complete=True)


def _result(store: LatentStore, settings: EncodeSettings, *, pace: float | None = None) -> Result:
    broken = store.broken()
    if broken and settings.strict:
        raise _strict_error(*broken[0])
    classes = (
        f"in {count(store.num_classes, 'class', 'classes')}"
        if store.num_classes
        else "without classes"
    )
    copies = "2 x " if store.has_flips else ""
    shape = store.rows.shape("latents")[1:]
    spec, size = store.autoencoder, store.path.stat().st_size
    summary = {"images": f"{store.num_items} {classes}"}
    if broken:
        named = "; ".join(f"{name}: {problem}" for name, problem in broken[:NAMED_BROKEN])
        summary["broken"] = (
            f"{len(broken)} ({named}{'; ...' if len(broken) > NAMED_BROKEN else ''})"
        )
    summary["latents"] = f"{copies}{format_shape(shape)} float16 an image, {format_bytes(size)}"
    summary["autoencoder"] = f"{spec['name']} ({spec['class']}), scaling {store.scaling}"
    if store.align:
        summary["features"] = (
            f"{copies}{format_shape(store.align['shape'])} float16 an image, {store.align['name']}"
        )
    if pace:
        summary["pace"] = f"{pace:.4g} images/s"
    data = {
        "images": store.num_items,
        "num_classes": store.num_classes,
        "broken": [{"name": name, "problem": problem} for name, problem in broken],
        "row_shape": list(shape),
        "flips": store.has_flips,
        "kind": store.kind,
        "image_size": store.image_size,
        "crop": store.crop,
        "autoencoder": spec,
        "scaling": store.scaling,
        "align": store.align,
        "bytes": size,
        "checksum": store.attrs["checksum"],
        "images_per_second": pace,
    }
    return Result(summary=summary, data=data, path=settings.out, next=_train_command(settings.out))


def _train_command(out: Path) -> str:
    try:
        if find.newest_store().samefile(out):
            return "sit train"
    except SitError:
        pass  # OUT lies elsewhere
    return shlex.join(["sit", "train", "--latents", str(out)])


def _strict_error(name: str, problem: str) -> SitError:
    hint = "without --strict broken images are counted and left out"
    return SitError(f"broken image {name}: {problem}", hint)


def _precision(vae: str, name: str, device: torch.device) -> torch.dtype:
    # The embedded autoencoders always compute in float32.
    return torch.float32 if vae in names.EMBEDDED_VAES else resolve_precision(name, device)


def _row_shape(spec: dict[str, Any], size: int) -> tuple[int, int, int]:
    channels = spec["latent_channels"] * (1 if spec["deterministic"] else 2)
    return channels, size // spec["downsample"], size // spec["downsample"]


def _row_shape_ahead(settings: EncodeSettings, file: Rows | None) -> tuple[int, ...] | None:
    """The shape of a row before anything is downloaded or fitted; None if that cannot be told."""
    size = settings.image_size
    if file is not None:
        return file.shape("latents")[1:]
    if settings.vae == "patch-pca":
        patch = settings.pca_patch
        _check_divisible(size, patch, settings.vae)
        return settings.pca_channels, size // patch, size // patch
    if settings.vae == names.DEFAULT_VAE:
        _check_divisible(size, 8, settings.vae)
        return 8, size // 8, size // 8
    if settings.vae == "pixels" or Path(settings.vae).exists():
        device = torch.device("cpu")
        autoencoder = load_autoencoder(settings.vae, device=device, dtype=torch.float32)
        _check_divisible(size, autoencoder.downsample, settings.vae)
        return _row_shape(autoencoder.spec, size)
    return None


def _check_divisible(size: int, downsample: int, vae: str) -> None:
    if size % downsample:
        raise UsageError(
            f"--image-size {size}: {vae} needs a multiple of {downsample}",
            f"use {max(downsample, round(size / downsample) * downsample)}",
        )


def _describe(source: Source) -> str:
    classes = (
        count(len(source.class_names), "class", "classes") if source.class_names else "no classes"
    )
    other = f", {source.skipped} other files skipped" if source.skipped else ""
    return f"{source.path}: {count(len(source), 'image')}, {classes}{other}"


def _readable(
    settings: EncodeSettings, source: Source, indices: np.ndarray
) -> Iterator[np.ndarray]:
    """The images `indices` that can be read, as uint8 (B, S, S, 3) arrays."""
    batches = [indices[i : i + PCA_BATCH] for i in range(0, len(indices), PCA_BATCH)]
    for pixels, problems in _read_ahead(settings, source, batches):
        readable = pixels.numpy()[[not problem for problem in problems]]
        if len(readable):
            yield readable


def _read_ahead(
    settings: EncodeSettings,
    source: Source,
    batches: list[np.ndarray],
    *,
    pin_memory: bool = False,
) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Read the batches of image numbers in order, in worker processes, some ahead of the reader.

    Each comes as uint8 (B, S, S, 3) and a problem per image; "" for a good one, whose place is
    black otherwise.
    """
    workers = settings.workers
    if workers is None:
        workers = min(8, processors_each() - 1)
    loader = torch.utils.data.DataLoader(
        _Batches(source, settings.image_size, settings.crop, batches),
        batch_size=None,
        shuffle=False,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_to_parent,
    )
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise SitError(
            "a process that reads images was killed; memory, or shared memory, is probably short",
            "the same command goes on; try --workers 0",
        ) from None


def _leave_interrupts_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset):
    """Prepared images by batch number, for worker processes."""

    source: Source
    size: int
    crop: names.Crop
    batches: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, list[str]]:
        batch = self.batches[number]
        pixels = np.zeros((len(batch), self.size, self.size, 3), np.uint8)
        problems = [""] * len(batch)
        for place, index in enumerate(batch):
            try:
                pixels[place] = prepare(self.source.read(index), self.size, self.crop)
            except BrokenImage as error:
                problems[place] = str(error)
        return torch.from_numpy(pixels), problems
