"""Encodes batches of images into rows of the store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from sitcli.autoencoders.base import Autoencoder
from sitcli.autoencoders.load import EMBEDDED, from_spec, load_autoencoder
from sitcli.commands.encode.grow import copy_rows, create_grown
from sitcli.commands.encode.job import (
    check_divisible,
    check_size,
    embedded_options,
    first_scaling,
    precision_of,
    row_shape,
    source_facts,
)
from sitcli.commands.encode.reader import PCA_IMAGES, read_ahead, read_some
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Note, Progress, Warn
from sitcli.features.aligners import Aligner, load_aligner
from sitcli.images.source import Source
from sitcli.latents.layout import FEATURES, FEATURES_CRC, PROBLEM_BYTES, create_store, row_checksums
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import precision_name, resolve_device, tune_cpu
from sitcli.machine.ranks import all_agree, events_from_rank_0, wait_for_all, watching_peers
from sitcli.machine.world import World
from sitcli.settings.encode import EncodeSettings
from sitcli.storage.rows import BROKEN, DONE, MISSING, Rows
from sitcli.text import count

NAMED_BROKEN = 3  # in warnings and the summary; the store names them all


def encode_missing(
    settings: EncodeSettings,
    source: Source,
    file: Rows | None,
    world: World,
    *,
    old: Rows | None = None,
) -> Generator[Event, None, float]:
    """Encode this rank's share of the batches that OUT lacks; returns images per second.

    file: OUT if it exists, else None. old: a store that grows to OUT, which has its rows first.
    """
    device = all_agree(world, lambda: resolve_device(settings.device))
    tune_cpu(device)
    autoencoder = None
    aligner = all_agree(world, lambda: _aligner(settings, device))

    def first() -> Generator[Event, None, list[np.ndarray]]:
        nonlocal autoencoder
        if old is not None:
            yield from _grow(settings, source, file, old)
            grown = Rows(settings.out)
            autoencoder = yield from _resume(settings, grown, device, aligner, name=old.path)
        elif file is None:
            autoencoder = yield from _begin(settings, source, device, aligner)
        else:
            done = np.count_nonzero(file.written)
            yield Note(
                f"going on with {settings.out}: {done} of {file.num_rows} images are encoded"
            )
            autoencoder = yield from _resume(settings, file, device, aligner, name=settings.out)
        return _missing_batches(Rows(settings.out))

    # One rank finds them for all: a late rank would see rows that others have written meanwhile.
    missing = yield from events_from_rank_0(world, first)
    autoencoder = all_agree(
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
    """Load or fit the autoencoder and create OUT."""
    size = settings.image_size
    dtype = precision_of(settings.vae, settings.precision, device)
    fitted = settings.vae in EMBEDDED and EMBEDDED[settings.vae].fit
    if fitted:
        options = embedded_options(settings)
        check_divisible(size, EMBEDDED[settings.vae].shape(options)[1], settings.vae)
        chosen = np.linspace(0, len(source) - 1, min(len(source), PCA_IMAGES)).astype(int)
        yield Note(f"fitting {settings.vae} on {len(chosen)} images")
        autoencoder = fitted(read_some(settings, source, chosen), options, device)
    else:
        autoencoder = load_autoencoder(settings.vae, device=device, dtype=dtype)
        check_size(size, autoencoder, settings.vae)
    create_store(
        settings.out,
        paths=[item.name for item in source.items],
        labels=np.array(source.labelled.labels),
        class_names=source.class_names,
        row_shape=row_shape(autoencoder.spec, size),
        kind="latents" if autoencoder.deterministic else "moments",
        flips=settings.flip,
        autoencoder=autoencoder.spec,
        autoencoder_arrays=autoencoder.arrays,
        scaling=first_scaling(settings, autoencoder),
        image_size=size,
        crop=settings.crop,
        source=str(settings.source),
        source_fingerprint=source.fingerprint,
        vae=settings.vae,
        batch_size=settings.batch_size,
        precision=precision_name(dtype),
        align=None if aligner is None else aligner.spec,
        source_facts=source_facts(source, settings),
    )
    return autoencoder


def _resume(
    settings: EncodeSettings,
    file: Rows,
    device: torch.device,
    aligner: Aligner | None,
    *,
    name: Path,
) -> Generator[Event, None, Autoencoder]:
    """Load the autoencoder that OUT was begun with; name: what messages call the store.

    Raises UsageError for another aligner.
    """
    attrs = file.attrs
    if attrs["batch_size"] != settings.batch_size:
        size = attrs["batch_size"]
        yield Note(f"{name} was begun with --batch-size {size}, which is kept")
    if aligner is not None and aligner.spec["hash"] != attrs["align"]["hash"]:
        raise UsageError(
            f"{name} was begun with other weights of {aligner.spec['name']}",
            "use the same --align-weights, or begin again with --overwrite",
        )
    autoencoder = _stored_autoencoder(settings, file, device)
    if attrs["source"] != str(settings.source):
        file.set_attrs(source=str(settings.source))  # it has moved; its contents are the same
    return autoencoder


def _grow(
    settings: EncodeSettings, source: Source, file: Rows | None, old: Rows
) -> Generator[Event, None, None]:
    """Create OUT unless it is begun already, and copy what it lacks of the old store's rows."""
    attrs = old.attrs
    new = len(source) - old.num_rows
    begun = 0 if file is None else np.count_nonzero(file.written[old.num_rows :])
    some = f"; {begun} of them are encoded" if begun else ""
    yield Note(f"{old.path} grows by {count(new, 'image')} to {len(source)}{some}")
    classes = dict(enumerate(source.class_names))
    if more := [f"{i} ({classes[i]})" for i in list(classes)[old.shape("class_names")[0] :]]:
        yield Note(f"new classes have the next numbers: {', '.join(more[:NAMED_BROKEN])}"
                   + (", ..." if len(more) > NAMED_BROKEN else ""))  # fmt: skip
    if file is None:
        facts = source_facts(source, dataclasses.replace(settings, labels=attrs["labels"]))
        facts["source_listing"] = attrs["source_listing"]
        create_grown(old, source, settings.out, facts)
    with Rows(settings.out, writable=True) as grown:
        for done in copy_rows(old, grown):
            yield Progress(done=done, total=len(source), text="copying")


def _stored_autoencoder(settings: EncodeSettings, file: Rows, device: torch.device) -> Autoencoder:
    attrs = file.attrs
    embedded = attrs["autoencoder"]["kind"] in EMBEDDED
    return from_spec(
        attrs["autoencoder"],
        LatentStore(file).autoencoder_arrays,
        override=None if embedded else settings.vae,
        device=device,
        dtype=precision_of(settings.vae, attrs["precision"], device),
    )


def _missing_batches(file: Rows) -> list[np.ndarray]:
    """The image numbers of each batch that lacks an image.

    Batches end where the store grew: a row's last bits may depend on its batch, and old rows stay.
    """
    written, size = file.written, file.attrs["batch_size"]
    ends = [*(record["rows"] for record in file.attrs.get("grown", [])), file.num_rows]
    batches = [
        np.arange(start, min(start + size, end))
        for begin, end in pairwise([0, *ends])
        for start in range(begin, end, size)
    ]
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
    """Encode this rank's share of the missing batches; returns images per second of all ranks.

    Raises SitError for a broken image under --strict.
    """
    with (
        Rows(settings.out, writable=True) as file,
        # Runs with different algorithms would differ in the last bits.
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        watching_peers(world) as check_peers,
    ):
        news = _News(file, source)
        before, start, flips = news.done, time.monotonic(), file.attrs["flips"]
        yield from news.look()
        batches = missing[world.rank :: world.size]
        read = read_ahead(settings, source, batches, pin_memory=device.type == "cuda")
        encoded = (
            (batch, problems, _encode_batch(autoencoder, aligner, pixels, device, flips=flips))
            for batch, (pixels, problems) in zip(batches, read, strict=True)
        )
        for batch, problems, latents in _one_late(encoded) if device.type != "cpu" else encoded:
            for index, problem in zip(batch, problems, strict=True):
                if problem and settings.strict:
                    raise strict_error(source.items[index].name, problem)
            _write_batch(file, batch, problems, latents)
            yield from news.look()
            check_peers()
        for _ in wait_for_all(world):
            yield from news.look()
            check_peers()
        yield from news.look()
    return (news.done - before) / max(time.monotonic() - start, 1e-9)


class _News:
    """Reports what all ranks have written so far, and what is new since the last look."""

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
    """(latents, features) of uint8 (B, H, W, 3) images and, with `flips`, of the mirrored ones.

    All are float16 on the device; the list of features is empty without an aligner.
    """
    # Bytes are sent to the device, a quarter of the floats; the permuted view is channels-last.
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
                "use --precision fp32",
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
    """Yield each item after the next is begun: a GPU computes that while this one is written."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def strict_error(name: str, problem: str) -> SitError:
    """The error for a broken image under --strict."""
    hint = "remove --strict to count broken images and encode the others"
    return SitError(f"broken image {name}: {problem}", hint)
