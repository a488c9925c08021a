"""The structure of the package, and every closed list names one table's rows."""

from pathlib import Path
from typing import get_args

import pytest

import sitcli
from sitcli import names
from sitcli.core.chain import BETAS, VARIANCES
from sitcli.core.interpolant import INTERPOLANTS
from sitcli.core.ode import ADAPTIVE, MULTISTEPS, ODE_STEPS
from sitcli.core.prediction import LOSS_WEIGHTS, PREDICTIONS
from sitcli.core.sde import LAST_STEPS, SDE_STEPS
from sitcli.core.times import TIME_DISTRIBUTIONS
from sitcli.core.wt import WT
from sitcli.model.blocks import BLOCKS, MLPS, NORMS
from sitcli.model.config import PRESETS
from sitcli.model.flops import PUBLISHED_256
from sitcli.settings.presets import SAMPLE, TRAIN
from tests import house

PACKAGE = house.Package(Path(sitcli.__file__).parent)
TESTS = Path(__file__).parent
RULES = (
    house.relative_imports,
    house.imports_that_go_up,
    house.mathematics_with_libraries,
    house.circles,
    house.settings_below_commands,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    assert rule(PACKAGE) == []


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


@pytest.mark.parametrize(
    ("listed", "table"),
    [
        (names.INTERPOLANTS, INTERPOLANTS),
        (names.PREDICTIONS, PREDICTIONS),
        (names.LOSS_WEIGHTS, LOSS_WEIGHTS),
        (names.BETAS, BETAS),
        (names.VARIANCES, VARIANCES),
        (names.WTS, WT),
        (names.ODE_SOLVERS, {**ODE_STEPS, **MULTISTEPS, **ADAPTIVE}),
        (names.MAP_SOLVERS, {**ODE_STEPS, **ADAPTIVE}),
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
        "loss-weight",
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
    """Catches: a choice that --help offers and no code serves, or the reverse."""
    assert list(listed) == list(table)


def test_solver_choices_are_both_lists():
    """Catches: a solver that --solver refuses although one of the two lists has it."""
    assert set(get_args(names.Solver)) == {*names.ODE_SOLVERS, *names.SDE_SOLVERS}
