"""Processes that work on one artefact together: meeting, agreeing, failing as one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from sitcli.errors import LostPeer, SitError
from sitcli.machine.children import take_meeting_point
from sitcli.machine.world import World

E, T = TypeVar("E"), TypeVar("T")
ARRIVAL = timedelta(minutes=10)  # for every process to start and join the group
PATIENCE = timedelta(days=30)  # of the group's operations: a rank may have hours of work left
LOOK_SECONDS = 0.2
CONNECT_SECONDS = 60.0
DEBUG_HINT = "that one knows why; SIT_DEBUG=1 shows more"
# What gloo and NCCL say when another process has gone.
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "remote process exited",
        "failed to recv", "connection refused", "socket", "nccl")  # fmt: skip


@contextlib.contextmanager
def process_group(world: World, *, backend: str | None = "gloo") -> Iterator[None]:
    """A process group of all ranks for the time of the block; nothing for one process.

    Within another one it is that one: a command of several stages meets once, for all.
    backend: None is gloo between CPUs and NCCL between GPUs, each from its first use on.
    """
    if world.size == 1 or dist.is_initialized():
        yield
        return
    with lost_peers():
        _join(world, backend)
    try:
        with lost_peers():
            yield
            dist.barrier()  # a rank that leaves early makes the others fail
    finally:
        dist.destroy_process_group()


_numbers = itertools.count()


def _join(world: World, backend: str | None) -> None:
    """Create the process group. SitError unless every rank comes within ARRIVAL."""
    try:
        store = _key_value_store(world)
        store.set_timeout(ARRIVAL)
        # A prefix for each group: keys of an earlier one in this process would answer for it.
        keys = dist.PrefixStore(f"group-{next(_numbers)}", store)
        dist.init_process_group(
            backend, store=keys, rank=world.rank, world_size=world.size, timeout=ARRIVAL
        )
    except dist.DistError as error:
        text, here = str(error).lower(), os.environ
        place = f"{here.get('MASTER_ADDR')}:{here.get('MASTER_PORT')}"
        if "address already in use" in text or "eaddrinuse" in text:
            raise SitError(
                f"another program has the port where the processes meet, {place}",
                "set MASTER_PORT to a free port",
            ) from None
        if "timed out" in text or "timeout" in text:
            raise SitError(
                f"not all {world.size} processes came to {place} within {ARRIVAL}",
                "set MASTER_ADDR to the machine of rank 0, and open its ports to the others",
            ) from None
        raise
    store.set_timeout(PATIENCE)
    dist.distributed_c10d._set_pg_timeout(PATIENCE)  # `dist.set_timeout` is newer than torch 2.7


@functools.cache
def _key_value_store(world: World) -> dist.Store:
    """Where the processes find each other: one store, which rank 0 or the launcher serves.

    It lives as long as the process. Were there one for each group, a fast rank could connect to
    the last group's, which rank 0 is about to close.
    """
    listener = take_meeting_point()
    if listener is None:
        return next(dist.rendezvous("env://", world.rank, world.size, timeout=ARRIVAL))[0]
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world.size,
        is_master=True,
        timeout=ARRIVAL,
        master_listen_fd=listener,
    )


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Turn the errors of a broken connection into LostPeer: the other process has the reason."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, dist.DistBackendError) or any(word in text for word in LOST):
            if os.environ.get("SIT_DEBUG") == "1":
                raise
            raise LostPeer("the connection to another process broke", DEBUG_HINT) from None
        raise


def all_agree(world: World, work: Callable[[], T]) -> T:
    """work() on every rank; where it fails on any, every rank raises the same SitError.

    Its message begins with the rank, unless that is the first or all failed alike; `shared` is
    set, so that the first rank alone speaks.
    """
    if world.size == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except SitError as error:
        failure = error
    failures = gathered(world, failure)
    if not any(failures):
        return result
    rank, first = next((r, error) for r, error in enumerate(failures) if error)
    alike = all(error and error.message == first.message for error in failures)
    if rank and not alike:
        first.message = f"rank {rank}: {first.message}"
    first.shared = True
    raise first


def gathered(world: World, value: T) -> list[T]:
    """This value of every rank, in their order; each must call it."""
    values = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)
    return values


def on_rank_0(world: World, work: Callable[[], T]) -> T:
    """work() on rank 0 alone, its result on every rank; all raise the SitError it raises."""
    if world.size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if world.rank == 0:
        with _failure_kept(outcome):
            outcome[0] = work()
    return _received(outcome)


def events_from_rank_0(
    world: World, work: Callable[[], Generator[E, None, T]]
) -> Generator[E, None, T]:
    """As `on_rank_0`, for work that reports as it goes on: rank 0 yields its events."""
    if world.size == 1:
        return (yield from work())
    outcome: list[Any] = [None, None]
    if world.rank == 0:
        with _failure_kept(outcome):
            outcome[0] = yield from work()
    return _received(outcome)


@contextlib.contextmanager
def _failure_kept(outcome: list[Any]) -> Iterator[None]:
    try:
        yield
    except SitError as error:
        error.shared = True
        outcome[1] = error


def _received(outcome: list[Any]) -> Any:
    dist.broadcast_object_list(outcome)
    value, failure = outcome
    if failure is not None:
        raise failure
    return value


@contextlib.contextmanager
def watching_peers(world: World) -> Iterator[Callable[[], None]]:
    """Gives a function that raises LostPeer once another rank has gone; for use in `process_group`.

    For long work in which ranks do not meet: not every launcher ends the others when one dies, and
    they would notice at their end. Within the block all must have come to an end together.
    """
    with contextlib.ExitStack() as held:
        try:
            lines = _lines(world) if world.size > 1 else []
        except OSError as error:
            address = os.environ["MASTER_ADDR"]
            raise SitError(
                f"the processes cannot meet at {address}: {error}",
                "MASTER_ADDR must be the first one's machine, and its ports open to the others",
            ) from None
        for line in lines:
            held.enter_context(line)
            line.setblocking(False)

        def check() -> None:
            for line in lines:
                # Nothing is ever sent: there is nothing to read, or the other end has closed.
                with contextlib.suppress(BlockingIOError):
                    with contextlib.suppress(ConnectionError):
                        line.recv(1)
                    raise LostPeer("the connection to another process broke", DEBUG_HINT)

        yield check


def _lines(world: World) -> list[socket.socket]:
    """A connection between the first rank and each other one; gloo's show nothing until used."""
    if world.rank:
        port = on_rank_0(world, lambda: None)
        address = (os.environ["MASTER_ADDR"], port)
        return [socket.create_connection(address, timeout=CONNECT_SECONDS)]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
        server.settimeout(CONNECT_SECONDS)
        on_rank_0(world, lambda: server.getsockname()[1])
        return [server.accept()[0] for _ in range(world.size - 1)]


def wait_for_all(world: World) -> Iterator[None]:
    """Yield now and then until every rank has come here."""
    if world.size == 1:
        return
    arrived = dist.barrier(async_op=True)
    while not arrived.is_completed():
        yield
        time.sleep(LOOK_SECONDS)
    arrived.wait()
