"""The optimizer's state in a checkpoint."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from sitcli.commands.train.stage import train
from sitcli.engine.optimizer_state import (
    MOMENTS,
    StateFiles,
    pieces_of,
    restore,
    snapshot,
    write_snapshot,
)
from sitcli.errors import SitError
from sitcli.runs.run_dir import RunDir
from tests.engine.training import engine
from tests.engine.training import train as train_engine
from tests.tiny import finish, train_settings


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_element_is_kept_once(zero: int) -> None:
    """Catches: a parameter that no rank keeps, or padding that is kept as a weight."""
    with engine(torch.float32, zero=zero) as made:
        names = {name: getattr(p, "ds_numel", p.numel()) for name, p in made.named_parameters()}
        pieces = pieces_of(made)
    kept = {}
    for piece in pieces:
        kept.setdefault(piece.name.removeprefix("module."), []).append((piece.start, piece.stop))
    assert {name.removeprefix("module."): [(0, n)] for name, n in names.items()} == kept


@pytest.mark.parametrize(("old", "new"), [(0, 1), (0, 3), (1, 2), (2, 0), (3, 1), (3, 3)])
def test_the_moments_go_from_stage_to_stage(tmp_path: Path, old: int, new: int) -> None:
    """Catches: moments lost, rounded or misplaced under another stage, or a step count that begins
    again, with which AdamW's corrections are those of the first step."""
    (tmp_path / "state").mkdir()
    with engine(torch.float32, zero=old) as first:
        train_engine(first, 2)
        tensors, facts = snapshot(first, rank=0, world_size=1)
        write_snapshot(tmp_path, tensors, facts, rank=0, world_size=1)
    assert facts == {"step": "2.0"}
    assert {key.split(" ")[0] for key in tensors} == set(MOMENTS)
    with engine(torch.float32, zero=new) as second:
        restore(second, tmp_path)
        found, again = snapshot(second, rank=0, world_size=1)
    assert (again, found.keys()) == (facts, tensors.keys())
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def write_parts(folder: Path, cuts: list[int]) -> torch.Tensor:
    """The moments of one parameter in len(cuts) + 1 files; returns the whole first moment."""
    (folder / "state").mkdir(parents=True)
    whole = torch.rand(12)
    bounds = [0, *cuts, 12]
    for rank, (start, stop) in enumerate(itertools.pairwise(bounds)):
        values = {f"{m} w {start}": whole[start:stop] + i for i, m in enumerate(MOMENTS)}
        facts = {"step": "9.0"}
        write_snapshot(folder, values, facts, rank=rank, world_size=len(bounds) - 1)
    return whole


@pytest.mark.parametrize("cuts", [[], [6], [1, 2, 11], [4, 8]])
def test_any_elements_are_read_from_any_number_of_files(tmp_path: Path, cuts: list[int]) -> None:
    """Catches: elements of the wrong file where a piece ends, or one read twice."""
    whole = write_parts(tmp_path, cuts)
    with ExitStack() as stack:
        files = StateFiles(tmp_path, stack)
        assert files.step == 9
        assert set(files.names()) == {(moment, "w") for moment in MOMENTS}
        for start in range(12):
            for stop in range(start, 13):
                assert torch.equal(files.read("exp_avg", "w", start, stop), whole[start:stop])
        assert torch.equal(files.read("exp_avg_sq", "w", 3, 9), whole[3:9] + 1)


def test_elements_that_no_file_has_are_missed(tmp_path: Path) -> None:
    """Catches: zeros, or what happened to lie in memory, in place of moments."""
    write_parts(tmp_path, [4, 8])
    middle = tmp_path / "state" / "rank-00001-of-00003.safetensors"
    write_snapshot(tmp_path, {"exp_avg w 5": torch.zeros(3)}, {"step": "9"}, rank=1, world_size=3)
    with ExitStack() as stack:
        files = StateFiles(tmp_path, stack)
        with pytest.raises(SitError, match="lacks 1 elements of exp_avg of w"):
            files.read("exp_avg", "w", 0, 12)
        with pytest.raises(SitError, match="lacks 4 elements of exp_avg_sq of w"):
            files.read("exp_avg_sq", "w", 0, 12)
        with pytest.raises(SitError, match="lacks 2 elements of exp_avg of other"):
            files.read("exp_avg", "other", 0, 2)
    middle.unlink()
    with ExitStack() as stack, pytest.raises(SitError, match=r"files of state/ are missing"):
        StateFiles(tmp_path, stack)


def test_state_that_is_not_whole(store: Path, tmp_path: Path) -> None:
    """Catches: training on with moments of zero where a file of the state is missing or damaged."""
    finish(train(train_settings(store, tmp_path / "run", steps=2)))
    state = RunDir(tmp_path / "run").newest() / "state"
    (file,) = state.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SitError, match=r"cannot read .*rank-00000-of-00001"):
        finish(train(train_settings(store, tmp_path / "run", steps=4)))
    file.rename(state / "rank-00000-of-00002.safetensors")
    with pytest.raises(SitError, match="files of state/ are missing"):
        finish(train(train_settings(store, tmp_path / "run", steps=4)))
    (state / "rank-00000-of-00002.safetensors").unlink()
    (state / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(SitError, match=r"in the form of sit 0\.2"):
        finish(train(train_settings(store, tmp_path / "run", steps=4)))
    assert RunDir(tmp_path / "run").steps() == [2]
