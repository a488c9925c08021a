"""Who a process is among several."""

from __future__ import annotations

import os

import pytest

from sitcli.errors import UsageError
from sitcli.machine import world
from sitcli.machine.world import World, adopt_slurm, device_name, local_size, number_of, world_for

CLUSTER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """None of a launcher's variables."""
    kept = {k: v for k, v in os.environ.items() if k not in CLUSTER and k[:6] != "SLURM_"}
    monkeypatch.setattr(os, "environ", kept)
    return kept


def test_alone_without_a_launcher(environment) -> None:
    """Catches: a process that waits for others nobody started."""
    assert World.from_environment() == World(0, 1)
    assert World(1, 4).slice(8) == slice(2, 4)


def test_torchrun_and_an_option_that_contradicts(environment) -> None:
    """Catches: eight processes of a launcher that each start two more, or ignore --procs 2."""
    environment |= {"RANK": "3", "WORLD_SIZE": "8"}
    assert world_for(gpus=None, procs=None) == world_for(gpus=8, procs=None) == World(3, 8)
    with pytest.raises(UsageError, match=r"--procs 2: a launcher has started 8"):
        world_for(gpus=None, procs=2)
    with pytest.raises(UsageError, match="both say how many"):
        number_of(gpus=1, procs=1)


def test_the_device_of_gpus_and_procs() -> None:
    """Catches: --gpus that trains on a CPU, or --device cuda under --procs ignored."""
    assert device_name("auto", gpus=2, procs=None) == "cuda"
    assert device_name("auto", gpus=None, procs=2) == "cpu"
    assert device_name("mps", gpus=None, procs=None) == "mps"
    with pytest.raises(UsageError, match="--gpus runs on cuda, not on --device cpu"):
        device_name("cpu", gpus=2, procs=None)
    with pytest.raises(UsageError, match="--procs runs on cpu, not on --device cuda"):
        device_name("cuda", gpus=None, procs=2)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[007-012,020],other3", "gpu007"), ("a3,b[1-2]", "a3"), ("n[1,5]", "n1"), ("one", "one")],
)
def test_srun(environment, nodes: str, first: str) -> None:
    """Catches: tasks of srun that each train alone, or look for the first node in vain."""
    environment |= {
        "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    }  # fmt: skip
    adopt_slurm()
    assert World.from_environment() == World(9, 16)
    assert environment["LOCAL_RANK"] == "1"
    assert environment["MASTER_ADDR"] == first
    assert 10000 <= int(environment["MASTER_PORT"]) < 30000
    assert local_size() == 8


def test_a_batch_script_is_no_task_of_srun(environment) -> None:
    """Catches: a command typed in sbatch's script that waits for tasks srun never started."""
    environment |= {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    adopt_slurm()
    assert World.from_environment() == World(0, 1)


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_containers_share_is_what_there_is(tmp_path, monkeypatch, files, number) -> None:
    """Catches: 64 threads in a container that has two of 64 processors."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(world, "CGROUP", tmp_path)
    monkeypatch.setattr(world.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert world.num_processors() == number
