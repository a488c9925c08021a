"""The structure of the package, and every closed list names one table's rows."""

import importlib
import pkgutil
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import sitcli
from sitcli import names
from sitcli.autoencoders.load import EMBEDDED
from sitcli.commands.train.recipe import SCHEDULES
from sitcli.core.chain import BETAS, VARIANCES
from sitcli.core.interpolant import INTERPOLANTS
from sitcli.core.ode import ADAPTIVE, MULTISTEPS, ODE_STEPS
from sitcli.core.prediction import LOSS_WEIGHTS, PREDICTIONS
from sitcli.core.sde import LAST_STEPS, SDE_STEPS
from sitcli.core.times import TIME_DISTRIBUTIONS
from sitcli.core.wt import WT
from sitcli.images.decode import CROPS
from sitcli.images.labels import LABELLINGS
from sitcli.metrics.table import METRICS
from sitcli.model.blocks import BLOCKS, MLPS, NORMS, QK_NORMS
from sitcli.model.config import PRESETS
from sitcli.model.flops import PUBLISHED_256
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.presets import SAMPLE, TRAIN
from sitcli.weights.formats import FORMATS
from sitcli.weights.lineages import LINEAGES
from tests import house

PACKAGE = house.Package(Path(sitcli.__file__).parent)
TESTS = Path(__file__).parent
RULES = (
    house.relative_imports,
    house.imports_that_go_up,
    house.mathematics_with_libraries,
    house.circles,
    house.long_files,
    house.long_functions,
    house.settings_below_commands,
    house.missing_rooms,
    house.rows_asked_by_name,
    house.heavy_imports,
)
# For each rule a small package in which something breaks it, and what the rule says of it.
PLANTED = {
    house.relative_imports: (
        {"core/a.py": "from . import b", "core/b.py": ""},
        "core/a.py: from . import b",
    ),
    house.imports_that_go_up: (
        {"core/a.py": "def f():\n    from small.cli import b", "cli/b.py": ""},
        "core/a.py imports cli/b.py",
    ),
    house.mathematics_with_libraries: (
        {"core/a.py": "import torch, numpy"},
        "core/a.py imports numpy",
    ),
    house.circles: (
        {
            "runs/a.py": "from small.runs.b import x",
            "runs/b.py": "from small.runs import c",
            "runs/c.py": "def f():\n    import small.runs.a",
        },
        "runs/a.py -> runs/b.py -> runs/c.py -> runs/a.py",
    ),
    house.long_files: ({"text.py": "\n" * 401}, "text.py has 401 lines"),
    house.long_functions: (
        {"text.py": "class A:\n    def f():\n" + "        x = 1\n" * 60},
        "text.py: f has 61 lines",
    ),
    house.settings_below_commands: (
        {"runs/a.py": "from small.settings.train import T", "settings/train.py": ""},
        "runs/a.py imports settings/train.py",
    ),
    house.missing_rooms: (
        {
            f"commands/{command}/{room}": ""
            for command in house.LARGE_COMMANDS
            for room in house.ROOMS
            if (command, room) != ("train", "report.py")
        },
        "commands/train has no report.py",
    ),
    house.rows_asked_by_name: (
        {"runs/a.py": 'if s.wt in ("kl", "x"):\n    pass', "core/wt.py": 'wt == "kl"'},
        "runs/a.py:1: s.wt in ('kl', 'x')",
    ),
    house.heavy_imports: (
        {"cli/a.py": "from small.runs import b", "runs/b.py": "import torch"},
        "cli/a.py imports torch through runs/b.py",
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    assert rule(PACKAGE) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_what_breaks_it(rule, tmp_path):
    """Catches: a rule that is satisfied by everything."""
    files, expected = PLANTED[rule]
    for name, text in files.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" if not text.endswith("\n") else text)
    assert rule(house.Package(tmp_path / "small")) == [expected]


def test_every_test_file_mirrors_a_source_file():
    assert house.tests_that_mirror_nothing(PACKAGE, TESTS) == []


def test_every_source_file_has_its_test_file():
    assert house.sources_without_tests(PACKAGE, TESTS) == []


def test_no_test_file_is_imported():
    assert house.tests_that_import_tests(TESTS) == []


def test_rules_about_tests_find_what_breaks_them(tmp_path, monkeypatch):
    """Catches: a rule that is satisfied by everything."""
    of_a_test = "tests.a.test_b"
    for name, text in {
        "package/a/b.py": "", "package/a/c.py": "", "package/a/d.py": "", "package/e.py": "",
        "tests/a/test_b.py": "", "tests/a/test_x.py": f"program = 'import {of_a_test}'",
        "tests/a/helper.py": f"from {of_a_test} import something", "tests/test_top.py": "",
        "tests/whole/test_y.py": "from tests.a import helper",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(house, "WITHOUT_A_MIRROR", {"a/d.py", "a/b.py"})
    package, tests = house.Package(tmp_path / "package"), tmp_path / "tests"
    assert house.tests_that_mirror_nothing(package, tests) == ["a/test_x.py mirrors no a/x.py"]
    assert house.sources_without_tests(package, tests) == [
        "a/c.py has no test file", "e.py has no test file", "a/b.py needs no exemption",
    ]  # fmt: skip
    assert house.tests_that_import_tests(tests) == [
        "a/helper.py imports tests.a.test_b", "a/test_x.py imports tests.a.test_b",
    ]  # fmt: skip


CLOSED_LISTS = {
    "interpolant": (names.INTERPOLANTS, INTERPOLANTS),
    "prediction": (names.PREDICTIONS, PREDICTIONS),
    "loss-weight": (names.LOSS_WEIGHTS, LOSS_WEIGHTS),
    "betas": (names.BETAS, BETAS),
    "variance": (names.VARIANCES, VARIANCES),
    "wt": (names.WTS, WT),
    "one-step": (get_args(names.OneStepSolver), ODE_STEPS),
    "multistep": (get_args(names.MultistepSolver), MULTISTEPS),
    "adaptive": (get_args(names.AdaptiveSolver), ADAPTIVE),
    "sde": (names.SDE_SOLVERS, SDE_STEPS),
    "last-step": (names.LAST_STEPS, LAST_STEPS),
    "times": (names.TIME_DISTRIBUTIONS, TIME_DISTRIBUTIONS),
    "schedule": (names.SCHEDULES, SCHEDULES),
    "block": (names.BLOCKS, BLOCKS),
    "mlp": (names.MLPS, MLPS),
    "qk_kind": (names.QK_KINDS, QK_NORMS),
    "norm": (names.NORMS, NORMS),
    "size": (names.SIZES, PRESETS),
    "paper-model": (names.PAPER_MODELS, [f"{size}/{patch}" for size, patch in PUBLISHED_256]),
    "crop": (get_args(names.Crop), CROPS),
    "labels": (get_args(names.Labels), LABELLINGS),
    "embedded-vae": (names.EMBEDDED_VAES, EMBEDDED),
    "metric": ([f.name for f in fields(EvaluateSettings) if f.name in METRICS], METRICS),
    "lineage": (names.LINEAGES, LINEAGES),
    "export-format": (names.EXPORT_FORMATS, FORMATS),
    "train-preset": (names.TRAIN_PRESETS, TRAIN),
    "sample-preset": (names.SAMPLE_PRESETS, SAMPLE),
}


@pytest.mark.parametrize("of", CLOSED_LISTS)
def test_lists_name_their_tables_rows(of):
    """Catches: a choice that --help offers and no code serves, or the reverse."""
    listed, table = CLOSED_LISTS[of]
    assert list(listed) == list(table)


def test_solver_choices_are_both_lists():
    """Catches: a solver that --solver refuses although one of the two lists has it."""
    assert set(get_args(names.Solver)) == {*names.ODE_SOLVERS, *names.SDE_SOLVERS}


def test_every_module_can_be_imported() -> None:
    """Catches: a name that moved, in a file that only one command needs."""
    modules = pkgutil.walk_packages(sitcli.__path__, "sitcli.")
    for name in sorted(module.name for module in modules if module.name != "sitcli.__main__"):
        importlib.import_module(name)
