"""Ranks that meet, agree and fail as one, in three real processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

from sitcli.machine.children import Children
from tests.tiny import ENVIRONMENT

PROGRAM = """
import json, os, sys, time

from sitcli.errors import LostPeer, SitError, UsageError
from sitcli.machine.world import World
from sitcli.machine.ranks import (
    all_agree, events_from_rank_0, on_rank_0, process_group, wait_for_all, watching_peers
)

world = World.from_environment()
said = {}

def outcome(work):
    try:
        return work()
    except SitError as error:
        return [type(error).__name__, error.message, error.hint, error.shared]

def fail_where(ranks):
    if world.rank in ranks:
        raise UsageError("it is wrong", "mend it")
    return world.rank

def events():
    yield f"event of {world.rank}"
    return world.rank

with process_group(world):
    said["all well"] = outcome(lambda: all_agree(world, lambda: fail_where([])))
    said["one fails"] = outcome(lambda: all_agree(world, lambda: fail_where([1])))
    said["first fails"] = outcome(lambda: all_agree(world, lambda: fail_where([0, 2])))
    said["all fail"] = outcome(lambda: all_agree(world, lambda: fail_where([0, 1, 2])))
    said["from first"] = outcome(lambda: on_rank_0(world, lambda: fail_where([1, 2])))
    said["first alone fails"] = outcome(lambda: on_rank_0(world, lambda: fail_where([0])))
    stage, said["led"] = events_from_rank_0(world, events), []
    while True:
        try:
            said["led"].append(next(stage))
        except StopIteration as end:
            said["led"].append(end.value)
            break
    time.sleep(0.5 * world.rank)
    said["looks"] = len(list(wait_for_all(world)))
try:
    with process_group(world), watching_peers(world) as check:
        check()
        said["lost"] = False
        if world.rank == 1:
            print(json.dumps(said), flush=True)
            os._exit(0)
        for _ in range(1000):
            time.sleep(0.01)
            check()
except LostPeer as error:
    said["lost"] = True
    print(json.dumps(said), flush=True)
    os._exit(0)  # as after an error: nobody waits
"""


LATE = """
import sys, time
from datetime import timedelta

import torch.distributed as dist

from sitcli.errors import SitError
from sitcli.machine import ranks
from sitcli.machine.world import World

ranks.ARRIVAL = timedelta(seconds=3)
world = World.from_environment()
if world.rank == 1 and "alone" in sys.argv:
    sys.exit()
try:
    with ranks.process_group(world):
        if world.rank:
            time.sleep(4)  # at work, longer than anyone waits for a process to start
        dist.barrier()
    with ranks.process_group(world):
        print(ranks.gathered(world, world.rank))
except SitError as error:
    print(error.message)
"""


def run_ranks(program: str, number: int, *words: str) -> list[str]:
    """What each of `number` processes prints."""
    shared = ENVIRONMENT | dict(WORLD_SIZE=str(number), MASTER_ADDR="127.0.0.1")
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with Children() as children:
        with socket.create_server(("127.0.0.1", 0)) as server:
            shared["MASTER_PORT"] = str(server.getsockname()[1])
            for rank in range(number):
                children.start(
                    [sys.executable, "-c", program, *words],
                    env=shared | {"RANK": str(rank)},
                    listener=None if rank else server.fileno(),
                    stdout=subprocess.PIPE,
                    text=True,
                )
        return [process.communicate(timeout=90)[0] for process in children.processes]


def test_a_rank_that_never_comes_is_not_waited_for_but_one_at_work_is() -> None:
    """Catches: the patience that long work needs given to a process that died before it joined,
    as when a port was taken: it hung for 30 days."""
    assert run_ranks(LATE, 2) == ["[0, 1]\n"] * 2
    alone, _ = run_ranks(LATE, 2, "alone")
    assert re.match(r"not all 2 processes came to 127.0.0.1:\d+ within 0:00:03", alone)


def test_three_ranks() -> None:
    """Catches: a failure of one rank that the others do not see, that is said by all or names no
    rank; work of the first done by each; a rank that does not wait, or does not notice that
    another has gone (its end, 10 s later, would say lost: False)."""
    said = [json.loads(text) for text in run_ranks(PROGRAM, 3)]
    assert [s["all well"] for s in said] == [0, 1, 2]
    for s in said:
        assert s["one fails"] == ["UsageError", "rank 1: it is wrong", "mend it", True]
        assert s["first fails"] == s["all fail"] == ["UsageError", "it is wrong", "mend it", True]
        assert s["from first"] == 0
        assert s["first alone fails"] == ["UsageError", "it is wrong", "mend it", True]
    assert [s["led"] for s in said] == [["event of 0", 0], [0], [0]]
    assert said[0]["looks"] >= 3 > said[2]["looks"]  # of 0.2 s, over a second
    # Rank 0 holds a line to each; the others end when it does.
    assert [s["lost"] for s in said] == [True, False, True]
