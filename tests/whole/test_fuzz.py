"""Damaged and hostile files: every command that reads one ends in one line, or does not mind.

SIT_FUZZ=600 pytest -m slow tests/test_fuzz.py     # more of them; prints what became of each
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pickle
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.encode.stage import encode
from sitcli.commands.evaluate.stage import evaluate
from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import sample
from sitcli.commands.train.stage import plan as train_plan
from sitcli.errors import SitError
from sitcli.features.statistics import save_statistics
from sitcli.metrics.moments import Moments, gaussian_of
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from sitcli.settings.train import TrainSettings
from sitcli.settings.weights import ExportSettings, ImportSettings
from tests.autoencoders.files import write_taesd
from tests.tiny import (
    finish,
    inception_file,
    make_run,
    make_store,
    pictures,
    write_folder,
    write_meta,
    write_samples,
)
from tests.weights.official_files import official, save, trainer

HEADROOM = 1 << 30  # bytes of memory a single file may cost
MARKER = "ran"


class Touch:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# --- the whole files, and the commands that read them --------------------------------------------


def official_file(folder: Path) -> Path:
    return save(folder / "SiT-Mi-2-64x64.pt", official())


def trainer_file(folder: Path) -> Path:
    return save(folder / "0000100.pt", trainer(path_type="Linear", prediction="velocity"))


def safetensors_file(folder: Path) -> Path:
    out = folder / "weights.safetensors"
    finish(export(ExportSettings(checkpoint=make_run(folder), out=out)))
    return out


def diffusers_folder(folder: Path) -> Path:
    out = folder / "diffusers"
    finish(export(ExportSettings(checkpoint=make_run(folder), out=out, format="diffusers")))
    return out


def latent_store(folder: Path) -> Path:
    return make_store(folder / "tiny.h5").path


def sample_set(folder: Path) -> Path:
    meta = dict(checkpoint="x", mode="ode", class_names=list("abcdefgh"))
    return write_samples(folder / "samples" / "a", pictures(8)[0], **meta)


def run_folder(folder: Path) -> Path:
    run = make_run(folder)
    (open_checkpoint(run).path / "state").rmdir()  # weights alone are a whole run too
    return run


def adm_npz(folder: Path) -> Path:
    np.savez(folder / "adm.npz", arr_0=pictures(8)[0])
    return folder / "adm.npz"


def statistics_npz(folder: Path) -> Path:
    total = Moments(192)
    total.add(np.random.default_rng(0).normal(size=(40, 192)))
    save_statistics(folder / "s.npz", gaussian_of(total), features="pixels")
    return folder / "s.npz"


def vae_file(folder: Path) -> Path:
    from diffusers import AutoencoderTiny

    small = (8, 8, 8, 8)
    network = AutoencoderTiny(encoder_block_out_channels=small, decoder_block_out_channels=small)
    return write_taesd(folder, network)[0]


def noise_file(folder: Path) -> Path:
    np.save(folder / "noise.npy", np.zeros((2, 3, 8, 8), np.float32))
    return folder / "noise.npy"


_inception: list[bytes] = []


def inception_weights(folder: Path) -> Path:
    if not _inception:
        path = inception_file(folder / "inception.pth")
        _inception.append(path.read_bytes())
    (folder / "inception.pth").write_bytes(_inception[0])
    return folder / "inception.pth"


def do_import(path: Path) -> None:
    out = path.parent / "imported"
    try:
        finish(import_weights(ImportSettings(weights=path, out_dir=out)))
    except SitError:
        if out.exists():
            raise RuntimeError("a refused import left something behind") from None
        raise


def do_evaluate(samples: Path, **more) -> None:
    settings = EvaluateSettings(samples=[samples], features="pixels", device="cpu", **more)
    finish(evaluate(settings))


def use_store(path: Path) -> None:
    finish(inspect(InspectSettings(path=path, verify=True, device="cpu")))
    train_plan(TrainSettings(latents=[path], device="cpu"))


def use_samples(path: Path) -> None:
    finish(inspect(InspectSettings(path=path, verify=True, device="cpu")))
    other = write_folder(path.parent / "real", pictures(8, seed=1)[0])
    do_evaluate(path, reference=other)


def use_run(path: Path) -> None:
    finish(inspect(InspectSettings(path=path, verify=True, device="cpu")))
    out = path.parent.parent / "drawn"
    finish(sample(SampleSettings(checkpoint=path, num=2, steps=2, out=out, device="cpu")))


def use_reference(path: Path) -> None:
    drawn = write_samples(path.parent / "drawn", pictures(8, seed=1)[0])
    do_evaluate(drawn, reference=path)


def use_vae(path: Path) -> None:
    write_folder(path.parent / "pictures", pictures(2, side=32)[0])
    settings = EncodeSettings(
        source=path.parent / "pictures",
        out=path.parent / "out.h5",
        vae=str(path),
        device="cpu",
        image_size=32,
        workers=0,
    )
    finish(encode(settings))


def use_inception(path: Path) -> None:
    from sitcli.features.extractors import choose_features, load_extractor

    load_extractor(choose_features("inception", {"inception": path}), torch.device("cpu"))


def use_noise(path: Path) -> None:
    (path.parent / "model").mkdir()
    run = make_run(path.parent / "model")
    out = path.parent / "x.h5"
    finish(
        sample(
            SampleSettings(
                checkpoint=run, noise=path, latents_only=True, out=out, steps=2, device="cpu"
            )
        )
    )


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None]]] = {
    "official weights": (official_file, do_import),
    "a trainer's checkpoint": (trainer_file, do_import),
    "safetensors": (safetensors_file, do_import),
    "a folder of diffusers": (diffusers_folder, do_import),
    "a latent store": (latent_store, use_store),
    "a sample set": (sample_set, use_samples),
    "a run": (run_folder, use_run),
    "ADM's npz": (adm_npz, use_reference),
    "a statistics npz": (statistics_npz, use_reference),
    "an autoencoder": (vae_file, use_vae),
    "InceptionV3": (inception_weights, use_inception),
    "noise": (noise_file, use_noise),
}


# --- the damages ---------------------------------------------------------------------------------


def truncate(path: Path, random: np.random.Generator) -> None:
    size = path.stat().st_size
    os.truncate(path, int(random.integers(0, size)))


def flip(path: Path, random: np.random.Generator) -> None:
    """A few bytes, mostly near an end, where formats keep what they say of themselves."""
    data = bytearray(path.read_bytes())
    for _ in range(int(random.integers(1, 12))):
        span = min(len(data), int(random.choice([64, 600, 5000, len(data)])))
        at = int(random.integers(0, span))
        data[at if random.random() < 0.5 else len(data) - 1 - at] = int(random.integers(0, 256))
    path.write_bytes(data)


def zero(path: Path, random: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    start = int(random.integers(0, len(data)))
    stop = min(len(data), start + int(random.integers(1, 4096)))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def empty(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(b"")


def noise_bytes(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(random.bytes(int(random.integers(1, 5000))))


def folder(path: Path, random: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path, random: np.random.Generator) -> None:
    path.unlink()
    path.symlink_to(path.name)


def hostile_pickle(path: Path, random: np.random.Generator) -> None:
    """A pickle that acts, bare, as torch saves one, or as an array of objects."""
    evil = Touch(path.parent / MARKER)
    if path.suffix == ".npy":
        np.save(path, np.array([evil], dtype=object), allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, arr_0=np.array([evil], dtype=object), mu=np.array([evil], dtype=object))
    elif random.random() < 0.5:
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save({"model": evil, "x_embedder.proj.weight": torch.zeros(1), "args": evil}, path)


def deep_pickle(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")


def bomb(path: Path, random: np.random.Generator) -> None:
    """Four gigabytes of zeros in four megabytes, under the names each format looks for."""
    names = ["archive/data.pkl", "archive/data/0", "archive/version", "archive/byteorder"]
    if path.suffix in (".npz", ".npy"):
        names = ["arr_0.npy", "mu.npy", "sigma.npy"]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, dict(descr="<f8", fortran_order=False, shape=(1 << 14, 1 << 15))
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(names[0], "w", force_zip64=True) as member:
            member.write(header.getvalue())
            piece = bytes(1 << 24)
            for _ in range(256):
                member.write(piece)
        for name in names[1:]:
            archive.writestr(name, header.getvalue())


def huge_claims(path: Path, random: np.random.Generator) -> None:
    """Shapes of terabytes in a file of a few bytes."""
    claim = dict(descr="<f4", fortran_order=False, shape=(1 << 20, 3, 1 << 10, 1 << 10))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, claim)
    if path.suffix == ".npy":
        path.write_bytes(b"\x93NUMPY\x01\x00" + header.getvalue())
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("arr_0.npy", "mu.npy", "sigma.npy"):
                archive.writestr(name, b"\x93NUMPY\x01\x00" + header.getvalue())
    elif path.suffix == ".safetensors":
        entry = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
        text = json.dumps({"x_embedder.proj.weight": entry}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
    else:
        wide = torch.zeros(1).expand(1 << 20, 1 << 12)  # 16 GB of one number
        state = official() | {"x_embedder.proj.weight": wide, "blocks.0.attn.qkv.weight": wide}
        torch.save(state, path)


BYTES = [truncate, truncate, flip, flip, flip, zero, empty, noise_bytes]
ANY = [folder, loop]
PICKLED = [hostile_pickle, deep_pickle, bomb, huge_claims]


def edit_tensors(path: Path, random: np.random.Generator) -> None:
    """Keys swapped, dropped or renamed; shapes, types and numbers that are wrong."""
    content = torch.load(path, weights_only=False)
    state = content.get("ema", content)
    keys = [str(key) for key in random.choice(list(state), 2, replace=False)]
    first, second = (state[key] for key in keys)
    choice = int(random.integers(0, 8))
    if choice == 0:
        state[keys[0]], state[keys[1]] = second, first
    elif choice == 1:
        del state[keys[0]]
    elif choice == 2:
        state[keys[0] + "x"] = state.pop(keys[0])
    elif choice == 3:
        state[keys[0]] = first.to(random.choice([torch.int64, torch.bool, torch.complex64]))
    elif choice == 4:
        state[keys[0]] = first * float("nan")
    elif choice == 5:
        state[keys[0]] = first[:1]
    elif choice == 6:
        state[keys[0]] = "text"
    else:
        state[keys[0]] = first.flatten()
    if "args" in content and random.random() < 0.5:
        content["args"] = argparse.Namespace(path_type=random.choice(["Cosine?", ""]), prediction=7)
    torch.save(content, path)


def edit_hdf5(path: Path, random: np.random.Generator) -> None:
    """Attributes and datasets that are missing, of another type or out of range."""
    import h5py

    with h5py.File(path, "r+") as file:
        choice = int(random.integers(0, 8))
        names = [name for name in file if isinstance(file[name], h5py.Dataset)]
        name, attr = str(random.choice(names)), str(random.choice(list(file.attrs)))
        if choice == 0:
            del file[name]
        elif choice == 1:
            del file.attrs[attr]
        elif choice == 2:
            file.attrs[attr] = random.choice([-1, 2**40, 0.5])
        elif choice == 3:
            file.attrs[attr] = str(random.choice(["{", "[[[[", "null", "x" * 60_000, '{"a": 1}']))
        elif choice == 4:
            shape = file[name].shape
            del file[name]
            file.create_dataset(name, shape or (1,), "f8", chunks=True, compression="gzip")
        elif choice == 5:
            del file[name]
            file[name] = np.zeros((3, 2), random.choice(["f8", "i1"]))
        elif choice == 6:
            del file[name]
            file.create_dataset(name, data=["text"] * 5, dtype=h5py.string_dtype())
        elif "labels" in file:
            file["labels"][0] = random.choice([-5, 10**12])


def edit_json(path: Path, random: np.random.Generator) -> None:
    """A meta.json with a value that is gone or of another type, at any depth."""
    document = json.loads(path.read_text())
    part, way = document, ""
    while True:
        key = str(random.choice(list(part)))
        if isinstance(part[key], dict) and part[key] and random.random() < 0.7:
            part, way = part[key], f"{way}{key}."
            continue
        break
    values = [None, -1, 10**12, "text", [], {}, [[1]], 0.5, float("nan"), True]
    if random.random() < 0.3:
        del part[key]
    else:
        part[key] = values[int(random.integers(0, len(values)))]
    write_meta(path, document)


def deep_json(path: Path, random: np.random.Generator) -> None:
    path.write_text("[" * 200_000)


def damages_of(kind: str, path: Path, random: np.random.Generator) -> tuple[Path, Callable]:
    """A file of the artefact at `path`, and what will be done to it."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        path = files[int(random.integers(0, len(files)))]
    choices = [*BYTES, *ANY]
    if path.suffix in (".pt", ".pth"):
        choices += [*PICKLED, *[edit_tensors] * 5]
    elif path.suffix in (".npz", ".npy", ".safetensors"):
        choices += PICKLED
    elif path.suffix == ".h5":
        choices += [edit_hdf5] * 8
    elif path.suffix == ".json":
        choices += [*[edit_json] * 10, deep_json]
    return path, choices[int(random.integers(0, len(choices)))]


# --- the test ------------------------------------------------------------------------------------


def try_one(kind: str, seed: int, folder_: Path) -> str:
    """What became of one damaged file: 'harmless' or 'refused'; AssertionError otherwise."""
    make, use = KINDS[kind]
    path = make(folder_)
    victim, damage = damages_of(kind, path, np.random.default_rng(seed))
    damage(victim, np.random.default_rng(seed + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    what = f"{kind}, {victim.name}: {damage.__name__}, seed {seed}"
    message = None
    try:
        use(path)
    except SitError as error:
        message = error.message
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert message is None or (message and "\n" not in message), f"{what}: {message!r}"
    assert not list(folder_.rglob(MARKER)), f"{what}: code of the file was run"
    used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert used < HEADROOM, f"{what}: {used / 2**30:.2f} GiB"
    return "harmless" if message is None else "refused"


def in_a_child(kind: str, seed: int, folder_: Path) -> str:
    """As `try_one`, in a process of its own: a crash of a C library is a failure, not the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # OpenMP's other threads do not survive a fork: it would wait
        try:
            text = try_one(kind, seed, folder_)
        except BaseException as error:  # whatever it is, the parent must hear of it
            text = f"failed: {error}"
        os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder_, ignore_errors=True)
    return text or f"failed: {kind}, seed {seed}: the process died of signal {status & 127}"


def run_fuzz(number: int, first: int, folder_: Path) -> dict[str, collections.Counter]:
    """What became of `number` damaged files, kind by kind."""
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    failures = []
    kinds = list(KINDS)
    for i in range(number):
        kind, place = kinds[i % len(kinds)], folder_ / str(i)
        place.mkdir()
        text = in_a_child(kind, 1000 * first + i, place)
        outcomes[kind][text.split(":")[0]] += 1
        if text not in ("harmless", "refused"):
            failures.append(text)
    assert not failures, "\n".join([f"{len(failures)} of {number}:", *failures])
    return outcomes


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    """Catches: a traceback, code that is run, memory without bound, or leftovers, for any file that
    a user may be given."""
    run_fuzz(2 * len(KINDS), 1, tmp_path)


@pytest.mark.slow
def test_hundreds_of_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Catches: the same on 360 files, or on as many as SIT_FUZZ says."""
    number, start = int(os.environ.get("SIT_FUZZ", 30 * len(KINDS))), time.monotonic()
    outcomes = run_fuzz(number, int(os.environ.get("SIT_FUZZ_SEED", 2)), tmp_path)
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"\n{number} files, {time.monotonic() - start:.0f} s, peak {peak:.2f} GiB a process")
        for kind, counts in outcomes.items():
            print(f"{kind}: {counts['refused']} refused, {counts['harmless']} harmless")


def test_the_whole_files_are_read(tmp_path: Path) -> None:
    """Catches: a fuzz run in which everything is refused because nothing was right to begin
    with."""
    for number, (make, use) in enumerate(KINDS.values()):
        place = tmp_path / str(number)
        place.mkdir()
        use(make(place))
    assert open_checkpoint(tmp_path / "0" / "imported").meta["lineage"] == "official-sit"
