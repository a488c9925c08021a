"""The shape of the package: imports go down only, and every closed list names one table's rows."""

import ast
import sys
from pathlib import Path
from typing import get_args

import pytest

import sitcli
from sitcli import names
from sitcli.core.ddpm import BETAS, VARIANCES
from sitcli.core.interpolant import INTERPOLANTS
from sitcli.core.prediction import PREDICTIONS
from sitcli.core.solvers import LAST_STEPS, MULTISTEPS, ODE_STEPS, SDE_STEPS
from sitcli.core.times import TIME_DISTRIBUTIONS
from sitcli.core.wt import WT
from sitcli.model.blocks import BLOCKS, MLPS, NORMS
from sitcli.model.flops import PUBLISHED_256
from sitcli.model.transformer import PRESETS
from sitcli.presets import SAMPLE, TRAIN

PACKAGE = Path(sitcli.__file__).parent
LIGHT = ("names", "errors", "events", "settings", "text", "presets")
SHARED = {"sitcli", *(f"sitcli.{name}" for name in LIGHT)}
BELOW = {
    "core": set(),
    "model": set(),
    "io": {"core", "model"},
    "stages": {"io", "core", "model"},
    "cli": {"stages", "io", "core", "model"},
}
MODULES = [file for name in BELOW for file in sorted((PACKAGE / name).rglob("*.py"))]


def imported(file):
    """Every module a file imports, at the top or inside functions; 'sitcli.io.rows' in full."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            for alias in node.names:
                # `from sitcli import names` and `from sitcli.stages import count` import modules.
                path = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = path.is_dir() or path.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def layer(file):
    return file.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    """Would catch mathematics that knows of files, and stages that know of the command line."""
    for module in imported(file):
        if module.split(".")[0] == "sitcli" and module not in SHARED:
            assert module.split(".")[1] in BELOW[layer(file)] | {layer(file)}, module


@pytest.mark.parametrize(
    "file",
    [file for file in MODULES if layer(file) in ("core", "model")],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_mathematics_needs_torch_only(file):
    """Would catch numpy or a file format in the code that other projects may want to copy."""
    allowed = {*sys.stdlib_module_names, "torch", "sitcli"}
    assert {module.split(".")[0] for module in imported(file)} <= allowed


@pytest.mark.parametrize("name", ["__init__", *LIGHT])
def test_shared_modules_are_light_and_stand_alone(name):
    """Would catch a heavy import that every `--help` pays for."""
    outside = {module for module in imported(PACKAGE / f"{name}.py") if module not in SHARED}
    assert {module.split(".")[0] for module in outside} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("listed", "table"),
    [
        (names.INTERPOLANTS, INTERPOLANTS),
        (names.PREDICTIONS, PREDICTIONS),
        (names.BETAS, BETAS),
        (names.VARIANCES, VARIANCES),
        (names.WTS, WT),
        # dopri5 is adaptive: no step of its own.
        (names.ODE_SOLVERS, {**ODE_STEPS, **MULTISTEPS, "dopri5": None}),
        (names.MAP_SOLVERS, {**ODE_STEPS, "dopri5": None}),
        (names.TIME_DISTRIBUTIONS, TIME_DISTRIBUTIONS),
        (names.MLPS, MLPS),
        (names.NORMS, NORMS),
        (names.TRAIN_PRESETS, TRAIN),
        (names.SAMPLE_PRESETS, SAMPLE),
        (names.SDE_SOLVERS, SDE_STEPS),
        (names.LAST_STEPS, LAST_STEPS),
        (names.BLOCKS, BLOCKS),
        (names.SIZES, PRESETS),
        (names.PAPER_MODELS, [f"{size}/{patch}" for size, patch in PUBLISHED_256]),
    ],
    ids=[
        "interpolant",
        "prediction",
        "betas",
        "variance",
        "wt",
        "ode",
        "map",
        "times",
        "mlp",
        "norm",
        "train-preset",
        "sample-preset",
        "sde",
        "last-step",
        "block",
        "size",
        "paper-model",
    ],
)
def test_lists_name_their_tables_rows(listed, table):
    """Would catch a choice that --help offers and no code serves, or the reverse."""
    assert list(listed) == list(table)


def test_solver_choices_are_both_lists():
    """Would catch a solver that --solver refuses although one of the two lists has it."""
    assert set(get_args(names.Solver)) == {*names.ODE_SOLVERS, *names.SDE_SOLVERS}
