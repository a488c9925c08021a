"""Options: frozen names, and the precedence, types and errors of --config FILE.yaml."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml

from sitcli.cli.app import app
from sitcli.cli.options import command
from sitcli.errors import UsageError
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings
from sitcli.settings.train import TrainSettings
from tests.cli.terminal import COMMANDS
from tests.tiny import ENVIRONMENT, make_store

SIT = [sys.executable, "-m", "sitcli"]


def test_presets_give_way(tmp_path: Path) -> None:
    """Catches: a preset that beats a flag, or a file that a preset beats."""
    latents = make_store(tmp_path / "tiny.h5").path
    (tmp_path / "c.yaml").write_text("train:\n  beta2: 0.9\n")
    command = [
        *SIT, "train", "--preset", "fast-sync", "--latents", str(latents), "--layer-sync", "0.7",
        "--config", str(tmp_path / "c.yaml"), "--steps", "1", "--out", str(tmp_path / "run"),
        "--batch-size", "4", "--precision", "fp32", "--sample-every", "0",
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert (kept["layer_sync"], kept["beta2"], kept["tread"], kept["lr"]) == (0.7, 0.9, 0.5, 2e-4)
    command = [
        *SIT, "sample", str(tmp_path / "run"), "--preset", "official-sit", "--ode", "--steps", "3",
        "--num", "2", "--dry-run", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    facts = json.loads(done.stdout)
    assert (facts["mode"], facts["steps"], facts["cfg_scale"]) == ("ode", 3, 1.5)
    assert "wt" not in facts


GOLDEN = Path(__file__).parent / "options.txt"


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_frozen(command):
    """Catches: an option renamed or dropped by accident: scripts depend on them.

    After a change on purpose: ``python tests/cli/test_options.py`` rewrites options.txt.
    """
    wanted = [line for line in GOLDEN.read_text().splitlines() if line.startswith(command + " ")]
    found = option_lines(command)
    assert found == wanted, "\n".join(difflib.unified_diff(wanted, found, lineterm="", n=0))


def option_lines(command):
    """'train --lr' for every argument and option of a command, sorted."""
    lines = []
    for parameter in typer.main.get_command(app).commands[command].params:
        flags = "/".join([*parameter.opts, *parameter.secondary_opts])
        lines.append(f"{command} {flags}")
    return sorted(lines)


if __name__ == "__main__":
    lines = [line for command in COMMANDS for line in option_lines(command)]
    GOLDEN.write_text("\n".join(lines) + "\n")


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """parse('train --lr 3', 'train: {lr: 2}') -> the settings the command would be given."""
    for name in [name for name in os.environ if name.startswith("SIT_")]:
        monkeypatch.delenv(name)
    given = []
    app = typer.Typer()
    register = {
        "encode-latents": EncodeSettings,
        "train": TrainSettings,
        "sample": SampleSettings,
        "evaluate": EvaluateSettings,
    }
    for name, settings_class in register.items():

        @command(app, name, settings_class, panel="Stages")
        def run(settings, invocation):
            """Keep what was given."""
            given.append(settings)

    def parse(line, yaml=None):
        arguments = line.split()
        if yaml is not None:
            (tmp_path / "config.yaml").write_text(yaml)
            arguments += ["--config", str(tmp_path / "config.yaml")]
        app(arguments, prog_name="sit", standalone_mode=False)
        return given.pop()

    return parse


def test_flag_beats_environment_beats_file_beats_default(parse, monkeypatch):
    """Catches: any swap in the order of precedence."""
    file = "train: {lr: 0.25}"
    assert parse("train").lr == 1e-4
    assert parse("train", file).lr == 0.25
    monkeypatch.setenv("SIT_TRAIN_LR", "0.5")
    assert parse("train", file).lr == 0.5
    assert parse("train --lr 0.75", file).lr == 0.75
    assert parse("train").lr == 0.5


def test_a_flag_chooses_another_sampler_than_the_file(parse, monkeypatch):
    """Catches: a file's `sde: true` that no flag can undo, or its w_t given to the ODE."""
    file = "sample: {sde: true, wt: kl, steps: 100, num: 7}"
    settings = parse("sample --ode --solver euler", file)
    assert (settings.ode, settings.sde, settings.wt, settings.steps) == (True, False, None, None)
    assert (settings.solver, settings.num) == ("euler", 7)
    settings = parse("sample --wt sigma", file)
    assert (settings.sde, settings.wt, settings.steps) == (True, "sigma", 100)
    monkeypatch.setenv("SIT_SAMPLE_DDIM", "1")
    settings = parse("sample", file)
    assert (settings.ddim, settings.sde, settings.wt) == (True, False, None)
    # Two flags are the user's own contradiction.
    settings = parse("sample --ode --ddim", file)
    assert settings.ode
    assert settings.ddim


def test_an_option_that_takes_several(parse, monkeypatch):
    """Catches: all but the last of several flags lost, and a file's list or text refused."""
    two = [Path("a.h5"), Path("b b.h5")]
    assert parse("train").latents is None
    assert parse("train --latents x.h5").latents == [Path("x.h5")]
    assert parse("train --latents y.h5 --latents x.h5").latents == [Path("y.h5"), Path("x.h5")]
    assert parse("train", "train: {latents: a.h5}").latents == two[:1]
    assert parse("train", "train: {latents: [a.h5, b b.h5]}").latents == two
    assert parse("train", "train: {latents: null}").latents is None
    assert parse("train --latents x.h5", "train: {latents: [a.h5, b.h5]}").latents == [Path("x.h5")]
    # Arguments too.
    sets = [Path("a"), Path("b b")]
    assert parse("evaluate", "evaluate: {samples: [a, b b]}").samples == sets
    assert parse("evaluate", "evaluate: {samples: a}").samples == sets[:1]
    assert parse("evaluate x", "evaluate: {samples: [a, b]}").samples == [Path("x")]
    monkeypatch.setenv("SIT_TRAIN_LATENTS", os.pathsep.join(map(str, two)))
    assert parse("train", "train: {latents: c.h5}").latents == two


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_numbers_are_finite(parse, value):
    """Catches: a NaN that bounds let pass and that only shows when everything is drawn."""
    with pytest.raises(Exception, match=r"finite|greater"):
        parse(f"sample --sde --wt-scale={value}")


def test_the_place_of_the_flag_does_not_matter(parse):
    """Catches: a file that wins over flags typed before --config."""
    assert parse("train --lr 0.75 --steps 3", "train: {lr: 0.25, steps: 5}").steps == 3


def test_values_keep_their_type(parse):
    """Catches: YAML's own readings: 1e-4 as text, no as False, 1 as a number for --zero."""
    text = """
        train:
          lr: 3e-5
          batch-size: 8
          flip: no
          ema_warmup: false
          zero: 2
          out: runs/x
          model: null
        sample: {classes: 207, sde: true, cfg-channels: 3}
        encode-latents: {source: pictures, out: x.h5, image-size: 64}
    """
    train = parse("train", text)
    assert train == TrainSettings(
        lr=3e-5, batch_size=8, flip=False, ema_warmup=False, zero="2", out=Path("runs/x")
    )
    sample = parse("sample", text)
    assert (sample.classes, sample.sde, sample.cfg_channels) == ("207", True, "3")
    assert sample.steps is None
    encode = parse("encode-latents", text)
    assert (encode.source, encode.image_size) == (Path("pictures"), 64)


def test_defaults_are_the_settings_classes(parse):
    """Catches: a second list of defaults on the command line."""
    assert parse("train") == TrainSettings()
    assert parse("sample") == SampleSettings()


def test_every_setting_can_come_from_a_file(parse):
    """Catches: an option whose name in the file is not the one --help shows."""
    for field in fields(SampleSettings):
        default = field.default
        value = {bool: not default, int: 7, float: 0.25}.get(type(default))
        if value is None:
            continue
        for key in (field.name, field.name.replace("_", "-")):
            settings = parse("sample", f"sample: {{{key}: {str(value).lower()}}}")
            assert getattr(settings, field.name) == value, key


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("train: {lrr: 1}", "unknown key 'lrr' in section 'train'", "'lr'"),
        ("trian: {lr: 1}", "no command 'trian'", "'train'"),
        ("train: {}\nsmaple: {}", "no command 'smaple'", "'sample'"),
        ("train:\n  lr: 1\n  lr: 2", "key 'lr' is given twice", ""),
        ("train: {lr: 1}\ntrain: {lr: 2}", "key 'train' is given twice", ""),
        ("train: [lr, 1]", "section 'train' must hold", ""),
        ("train: {lr: [1, 2]}", "'lr' takes one value, not list", ""),
        ("train: {latents: [[a.h5]]}", "'latents' takes a value, or a list of values", ""),
        ("train: {latents: {a: b}}", "'latents' takes a value, or a list of values", ""),
        ("- train", "expected a section per command", ""),
        ("train: {lr: 1", "not valid YAML", ""),
        ("train: {config: other.yaml}", "unknown key 'config'", ""),
    ],
    ids=str,
)
def test_wrong_files_are_refused(parse, text, message, hint):
    """Catches: a misspelt key that is silently ignored, and YAML's keep-the-last."""
    with pytest.raises(UsageError) as caught:
        parse("train", text)
    assert message in caught.value.message
    assert "config.yaml" in caught.value.message
    assert hint in caught.value.hint


def test_an_absent_file_is_refused(parse, tmp_path):
    """Catches: a run that goes on with the defaults when its config is missing."""
    with pytest.raises(UsageError, match="cannot read"):
        parse(f"train --config {tmp_path / 'absent.yaml'}")


@pytest.mark.parametrize(
    ("text", "environment", "origin"),
    [
        ("train: {steps: many}", {}, "from the --config file"),
        ("train: {interpolant: gpv}", {}, "from the --config file"),
        ("train: {flip: perhaps}", {}, "from the --config file"),
        ("train: {batch_size: 0}", {}, "from the --config file"),
        ("{}", {"SIT_TRAIN_STEPS": "many"}, "from the environment"),
    ],
    ids=str,
)
def test_wrong_types_name_the_option_and_the_place(tmp_path, text, environment, origin):
    """Catches: a traceback for a wrong type, and a message that blames a flag not typed."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "sitcli", "train", "--config", file],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    error, hint = done.stderr.splitlines()
    assert done.returncode == 2
    assert "error: Invalid value for '--" in error
    assert origin in error
    assert hint == "hint: sit train --help"


def test_example_configs_are_accepted():
    """Catches: an example that a renamed option left behind."""
    from sitcli.cli.options import config_section
    from sitcli.settings import encode, evaluate, sample, train

    classes = {
        "encode-latents": encode.EncodeSettings,
        "train": train.TrainSettings,
        "sample": sample.SampleSettings,
        "evaluate": evaluate.EvaluateSettings,
    }
    examples = list((Path(__file__).parents[2] / "examples").glob("**/*.yaml"))
    assert examples
    for path in examples:
        for name, settings_class in classes.items():
            known = {field.name for field in fields(settings_class)}
            section = config_section(path, name, list(classes))
            assert {key.replace("-", "_") for key in section} <= known
