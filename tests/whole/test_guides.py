"""README and guides: `sit` takes every command line in them, links lead somewhere, sizes hold.

A line is what stands in a block of commands, in a span of code that begins with `sit`, or in a
Slurm script. `HOW` says of each line in a block what is done with it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from typer.main import get_command

from sitcli.cli.app import app
from sitcli.core.diffusion import Diffusion
from sitcli.errors import SitError
from sitcli.latents.store import LatentStore
from tests import tiny
from tests.commands.import_latents.others import normal, write_fast_dit, write_repa, write_shards
from tests.images.archives import samples_of, write_parquet, write_shard

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples"
GUIDES = [README, *sorted(EXAMPLES.glob("**/README.md"))]
SCRIPTS = sorted(EXAMPLES.glob("**/*.sbatch"))
MOST_BYTES = 9_000
CLASSES = 365  # the guides name class 360 of ImageNet

REAL, DRY, HELP = "for real", "with --dry-run", "with --help"


class Rule(NamedTuple):
    """What is done with the lines that `pattern` begins; `more` words are added to them."""

    pattern: str
    how: str
    more: str = ""


# The first rule that matches a line counts; a line that none matches fails.
HOW = (
    Rule("quickstart", HELP),  # tests/whole/test_quickstart.py runs it
    Rule("bench (train|sample|encode|loader|gemm)", HELP),  # measures for minutes
    Rule("import hf:", HELP),  # asks the hub
    Rule("import SiT-XL-2-256x256.pt .*--image-size", HELP),  # the tiny weights have no such grid
    Rule("import lightningdit", HELP),  # tests/weights/test_lightningdit.py makes such a file
    Rule("flops", REAL, "--no-check"),  # tested elsewhere, and takes seconds
    Rule("inspect", REAL),
    Rule("watch", REAL, "--once"),
    Rule("encode-latents", DRY),
    Rule("train --init SiT-XL-2-256x256.pt", HELP),  # the tiny file does not tell its autoencoder
    Rule("train", DRY, "--device cpu"),
    Rule("sample .*imagenet256-dit.yaml", DRY, "runs/DiT-NAME --device cpu"),
    Rule("sample", DRY, "--device cpu"),
    Rule("evaluate .*(--nll|--features)", DRY, "--device cpu"),
    Rule("evaluate", DRY, "--device cpu --features-weights inception.pth"),
    Rule("ema", DRY),
    Rule("import-latents .*--vae", HELP),  # the weights are not here
    Rule("import-latents", DRY),
    Rule("import", DRY, "--vae pixels --heads 2"),
    Rule("export", DRY),
)
# What the lines name and a test does not have, and what stands for it.
INSTEAD = {
    "--gpus": "--procs",
    "runs/NAME/step-0200000": "runs/NAME/step-0000001",
    "1000": "100",  # images of a test set
    "runs/lightning": "runs/sit-xl",
}
# Programs that are not ours: their lines are not run.
OTHERS = ("pip", "hf", "python3")
# Options of other programs that the text speaks of.
FOREIGN = (
    "--num-sampling-steps", "--diffusion-form", "--diffusion-norm", "--sampling-method", "--mode",
    "--guidance-low", "--guidance-high", "--node-rank", "--help",
)  # fmt: skip


class Line(NamedTuple):
    """A command line of `sit`, without the `sit`; whole: all of it, as it is to be typed."""

    file: Path
    number: int
    words: list[str]
    whole: bool
    environment: dict[str, str]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.number}: sit {shlex.join(self.words)}"


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of all lines in blocks of commands, continued lines joined."""
    fence, block, before, joined = None, False, "", ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*```(\w*)", line)
        if mark:
            fence = mark[1] if fence is None else None
            before = ""
            continue
        block = line.startswith("    ") and (block or not before)
        before = line.strip()
        if not before or not (block if fence is None else fence in ("", "sh", "bash", "console")):
            continue
        joined += before.removeprefix("$ ").removesuffix("\\")
        if not before.endswith("\\"):
            yield number, joined
            joined = ""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell's line."""
    words: list[str] = []
    for word in shlex.split(text, comments=True):
        if word in ("&&", "||", ";", "|"):
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def ours(words: list[str]) -> list[str] | None:
    """What `sit` is given by a command, directly or through a launcher; None if it is not ours."""
    if words[0] in ("torchrun", "deepspeed", "srun"):
        name = "sitcli" if "sitcli" in words else "sit"
        return words[words.index(name) + 1 :]
    return words[1:] if words[0] == "sit" else None


def lines_of(file: Path) -> list[Line]:
    """All lines of `sit` in a guide or a Slurm script. Fails for a program it does not know."""
    text, found = file.read_text(), []
    if file.suffix == ".sbatch":
        joined = text.replace("\\\n", " ").splitlines()
        command = next(line for line in joined if line.startswith("srun")).split("||")[0]
        return [Line(file, 1, ours(shlex.split(command)), True, {})]
    for number, line in blocks(text):
        for words in commands(line):
            environment = {}
            while re.match(r"[A-Z_]+=", words[0]):
                name, _, environment[name] = words.pop(0).partition("=")
            given = ours(words)
            if given is not None:
                found.append(Line(file, number, given, True, environment))
            elif words[0] == "python":
                check_script(words)
            elif words[0] == "sbatch":
                assert (ROOT / words[1]) in SCRIPTS, line
            else:
                place = f"{file.relative_to(ROOT)}:{number}"
                known = words[0] in OTHERS or line in README_COMMANDS
                assert known, f"{place}: nothing says how to run {line!r}"
    plain = re.sub(r"```.*?```", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    for number, line in enumerate(plain.splitlines(), 1):
        if not line.startswith("    "):
            for span in re.findall(r"`sit ([^`]+)`", line):
                found.append(Line(file, number, shlex.split(span), False, {}))
    return found


# The README's two commands install, and then do everything.
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -e"
README_COMMANDS = (f"{INSTALL} . && sit quickstart", f"{INSTALL} '.[test]' && pytest")


def check_script(words: list[str]) -> None:
    """A script of examples/ must be there and know the options it is given."""
    source = (ROOT / words[1]).read_text()
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{words[1]} has no {word}"


def parse(line: Line) -> str | None:
    """What the program's own parser has against a line; a line cut short may lack arguments."""
    group = get_command(app)
    with patch.dict(os.environ, line.environment), inside(ROOT):
        context = group.make_context("sit", line.words[:1], resilient_parsing=True)
        command = group.commands.get(line.words[0])
        if command is None:
            return f"no command {line.words[0]}"
        known = {option for parameter in command.params for option in parameter.opts}
        flags = {word.partition("=")[0] for word in line.words if word.startswith("--")}
        if unknown := flags - known - {"--help"}:
            return f"no option {', '.join(sorted(unknown))}"
        words = [word for word in line.words[1:] if word != "--help"]
        if "study.yaml" in words:  # the reader writes it; it is read where the line runs
            words = [word for word in words if word not in ("--config", "study.yaml")]
        try:
            command.make_context(line.words[0], words, parent=context)
        except Exception as error:
            lacks = type(error).__name__ == "MissingParameter" or "requires an arg" in str(error)
            return None if lacks and not line.whole else str(error)
    return None


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The current folder is `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(words: list[str]) -> None:
    """Run `sit WORDS` in this process, without its output."""
    nowhere = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        app(words, prog_name="sit", standalone_mode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny artefacts under the names that the guides use."""
    folder = tmp_path_factory.mktemp("guides")
    images, _ = tiny.pictures(CLASSES)
    names = [f"c{i:03d}" for i in range(CLASSES - 1)] + ["goldfish"]
    for name, image in zip(names, images, strict=True):
        tiny.write_folder(folder / "imagenet" / "train" / name, image[None])
    with inside(folder):
        (folder / "examples").symlink_to(EXAMPLES)
        (folder / "new").mkdir()
        for name in ("photos", "heldout", "drawn"):
            tiny.write_folder(folder / name / "one", images[:12])
        shutil.make_archive("photos", "zip", "photos")
        shutil.make_archive("cifar10", "tar", "photos")
        for i in range(3):
            write_shard(folder / "shards" / f"train-{i:06d}.tar", samples_of(range(4)))
            write_parquet(folder / "hub" / "data" / f"train-{i}.parquet", range(4))
        scripted = torch.jit.script(Features())
        torch.jit.save(scripted, "map.pt")
        shutil.copy("map.pt", "my.pt")
        encode = "--vae pixels --image-size 8 --crop none --workers 0 --device cpu"
        more = "--align-features map.pt"
        call(f"encode-latents photos aligned.h5 {encode} {more}".split())
        call(f"encode-latents photos a.h5 {encode}".split())
        call(f"encode-latents imagenet/train in256.h5 {encode}".split())
        for copy in ("b.h5", "test.h5", "photos.h5", "mine.h5", "bigger.h5"):
            shutil.copy("in256.h5", copy)
        small = "--model SiT-Mi/4 --width 32 --depth 2 --heads 2 --batch-size 8 --device cpu"
        steps = "--steps 2 --save-every 1 --power-ema"
        call(f"train --latents in256.h5 --out runs/NAME {small} {steps}".split())
        for name in ("mine", "sit-xl"):
            shutil.copytree("runs/NAME", f"runs/{name}")
        make_discrete(folder / "runs" / "DiT-NAME", folder / "in256.h5")
        for name in ("ode", "sde", "NAME"):
            call(f"sample runs/NAME --num 8 --steps 1 --out samples/{name} --device cpu".split())
        call(["export", "runs/mine", "SiT-XL-2-256x256.pt", "--format", "official-sit"])
        weights = torch.load("SiT-XL-2-256x256.pt")
        arguments = argparse.Namespace(path_type="GVP", prediction="velocity")
        torch.save(dict(ema=weights, model=weights, opt={}, args=arguments), "0400000.pt")
        write_repa(folder / "repa")
        write_fast_dit(folder / "fastdit")
        write_shards(folder / "lightningdit")
        np.save("latents.npy", normal(8, 4, 4, 4) / 0.2)
        np.save("labels.npy", np.arange(8))
        shutil.copy("in256.h5", "repa.h5")
        np.save("noise.npy", np.zeros((4, 3, 8, 8), np.float32))
        Path("inception.pth").touch()
        mean, square = np.zeros(2048), np.zeros((2048, 2048))
        gaussians = dict(mu=mean, sigma=square, mu_s=np.zeros(2023), sigma_s=square[:2023, :2023])
        np.savez("VIRTUAL_imagenet256_labeled.npz", arr_0=images[:16], **gaussians)
        text = (EXAMPLES / "README.md").read_text()
        Path("study.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
        os.utime("in256.h5")  # the newest, which lines that name no input take
        os.utime("runs/NAME/step-0000002/meta.json")
    return folder


class Features(torch.nn.Module):
    """Maps (B, 4, 2, 2) of uint8 images, as --align-features asks for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).repeat(1, 2, 1, 1)[:, :4]


def make_discrete(run: Path, store: Path) -> None:
    """A DiT's run with one checkpoint, of the latents of that store."""
    config = dataclasses.replace(tiny.CONFIG, num_classes=CLASSES)
    opened = LatentStore.open(store)
    with (
        patch.object(tiny, "CONFIG", config),
        patch.object(tiny, "make_store", lambda *args, **more: opened),
    ):
        tiny.make_run(run.parents[1], process=Diffusion()).rename(run)


@pytest.mark.parametrize("file", [*GUIDES, *SCRIPTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_the_program_knows_every_line(file: Path) -> None:
    """Catches: a guide with an option, a choice or a command that is misspelt or was renamed."""
    found = [(line, parse(line)) for line in lines_of(file)]
    problems = [f"{line}: {problem}" for line, problem in found if problem]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_option_in_the_text_exists(file: Path) -> None:
    """Catches: an option in a table or a sentence that no command has."""
    parameters = [p for c in get_command(app).commands.values() for p in c.params]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    known |= set(FOREIGN)
    for script in EXAMPLES.glob("**/*.py"):
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text()))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", file.read_text(), flags=re.S))
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert sorted(named - known) == []


def test_every_line_runs(folder: Path) -> None:
    """Catches: a line that parses and that the command then refuses; a line without a rule."""
    problems = []
    lines = [line for file in [*GUIDES, *SCRIPTS] for line in lines_of(file) if line.whole]
    assert len(lines) > 80  # the collector sees the blocks
    for line in lines:
        text = " ".join(line.words)
        rule = next((rule for rule in HOW if re.match(rule.pattern, text)), None)
        if rule is None:
            problems.append(f"{line}: no rule of HOW says what to do with it")
            continue
        words = [INSTEAD.get(word, word).replace("$SCRATCH", ".") for word in line.words]
        if words[0] in ("encode-latents", "import-latents", "import"):
            words[2] = f"new/{words[2]}"  # what they write is there already, for other lines
        words += rule.more.split()
        words += {DRY: ["--dry-run"], HELP: ["--help"], REAL: []}[rule.how]
        try:
            with patch.dict(os.environ, line.environment), inside(folder):
                call(words)
        except SitError as error:
            problems.append(f"{line}: {error.message} ({error.hint})")
        except Exception as error:
            problems.append(f"{line}: {type(error).__name__}: {error}")
    assert not problems, "\n".join(problems)


def test_your_own_images_in_four_commands(tmp_path: Path) -> None:
    """Catches: a first evening that ends in an error, after any of the four commands."""
    text = README.read_text().split("## Your own images")[1].split("\n## ")[0]
    four = [words for _, line in blocks(text) for words in commands(line)]
    assert [words[1] for words in four] == ["encode-latents", "train", "sample", "evaluate"]
    images, labels = tiny.pictures(24, side=40)
    for label in range(3):
        tiny.write_folder(tmp_path / "photos" / str(label), images[labels == label])
    less = {
        "encode-latents": "--workers 0",
        "train": "--model SiT-Mi/4 --width 32 --depth 2 --heads 2 --steps 2 --batch-size 8",
        "sample": "--steps 2 --num 6",
        "evaluate": "",
    }
    with inside(tmp_path):
        for _, *words in four:
            call([*words, *less[words[0]].split(), "--device", "cpu"])
    assert (tmp_path / "photos.h5").exists()
    (samples,) = (tmp_path / "samples").iterdir()
    assert {"samples.h5", "grid.png", "metrics.json"} <= {path.name for path in samples.iterdir()}


def test_the_two_commands_that_do_everything() -> None:
    """Catches: a README without the line that installs and shows, or installs and tests."""
    lines = [line for _, line in blocks(README.read_text())]
    assert [line for line in lines if line.startswith("python3 -m venv")] == [*README_COMMANDS]


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_guide_is_short_and_its_links_lead_somewhere(file: Path) -> None:
    """Catches: a guide that grows, a moved file, a heading that was renamed."""
    text = file.read_text()
    assert len(text.encode()) <= MOST_BYTES
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = file.parent / name if name else file
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(target)
    assert lost == []


def anchors(path: Path) -> set[str]:
    """The headings of a guide as links name them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: str(file.relative_to(ROOT)))
def test_quoted_messages_are_those_of_the_program(file: Path, messages: list[re.Pattern]) -> None:
    """Catches: a row of "When something goes wrong" whose message was reworded since."""
    table = file.read_text().partition("## When something goes wrong")[2].split("\n## ")[0]
    quoted = [text.replace("...", "x") for text in re.findall(r"^\| `([^`]+)` \|", table, re.M)]
    assert [text for text in quoted if not any(m.fullmatch(text) for m in messages)] == []


@pytest.fixture(scope="module")
def messages() -> list[re.Pattern]:
    """All texts in the source, with anything where a value stands."""
    found = []
    for file in (ROOT / "sitcli").glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, (ast.JoinedStr, ast.Constant)):
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            constant = [isinstance(part, ast.Constant) and str(part.value) for part in parts]
            if sum(map(len, filter(None, constant))) > 12:
                found.append(re.compile("".join(re.escape(c) if c else ".+" for c in constant)))
    return found


def test_the_index_and_the_readme_name_every_guide() -> None:
    """Catches: a guide that nothing leads to."""
    folders = {guide.parent.name for guide in GUIDES} - {ROOT.name, "examples"}
    for text in (README.read_text(), (EXAMPLES / "README.md").read_text()):
        assert folders <= set(re.findall(r"\]\((?:examples/)?([\w-]+)/README\.md", text))


def test_the_layout_names_every_folder_and_the_walks_real_files() -> None:
    """Catches: a folder that the layout forgets, a walk through a file that was moved."""
    section = README.read_text().split("## The code")[1]
    package = ROOT / "sitcli"
    layout, rest = section.split("```")[1], section.split("```")[2]
    named = set(re.findall(r"([\w-]+)/", layout))
    folders = {path.parent.name for path in package.glob("**/__init__.py")}
    assert folders == named
    walks = [walk.split("\n\n")[0] for walk in rest.split("\n\n1. ")[1:]]
    assert len(walks) == 2
    for walk in walks:
        assert len(walk.splitlines()) == 6
        files = re.findall(r"`((?:\w+/)+\w+\.py|names\.py)`", walk)
        assert [file for file in files if not (package / file).exists()] == []
        assert len(set(files)) == len(files)


def test_the_examples_import_what_there_is() -> None:
    """Catches: a script of examples/ that a moved function or a renamed one left behind."""
    lost = []
    for script in EXAMPLES.glob("**/*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sitcli"):
                module = importlib.import_module(node.module)
                lost += [f"{script}: {a.name}" for a in node.names if not hasattr(module, a.name)]
    assert lost == []


@pytest.mark.slow
def test_torch_fidelity_has_the_same_figures(tmp_path: Path) -> None:
    """Catches: the script of the evaluation guide not running, or metrics that drift apart."""
    weights = tiny.inception_file(tmp_path / "inception.pth")
    for seed, name in enumerate(("samples", "reference")):
        tiny.write_folder(tmp_path / name, tiny.pictures(24, side=16, seed=seed)[0])
    words = [sys.executable, str(EXAMPLES / "evaluation" / "parity.py")]
    words += [str(tmp_path / "samples"), str(tmp_path / "reference"), "--weights", str(weights)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, check=True, env=tiny.ENVIRONMENT
    )
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["FID", "IS", "KID", "precision", "recall"]
    assert all(float(row[-1]) < 1e-3 for row in rows)
