"""Several processes of one command: how they find each other, agree, and fail as one."""

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
# Words in the errors of gloo and NCCL if another process has ended.
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "remote process exited",
        "failed to recv", "connection refused", "socket", "nccl")  # fmt: skip


@contextlib.contextmanager
def process_group(world: World, *, backend: str | None = "gloo") -> Iterator[None]:
    """Hold a process group of all ranks during the block; one process needs none.

    Inside another such block the outer group serves, so a command made of stages has one group.
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
    """Create the process group. Raises SitError unless every rank joins within ARRIVAL."""
    try:
        store = _key_value_store(world)
        store.set_timeout(ARRIVAL)
        # Each group has a prefix: it must not read the keys of an earlier group.
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
    if hasattr(dist, "set_timeout"):  # newer than torch 2.7
        dist.set_timeout(PATIENCE)
    else:
        dist.distributed_c10d._set_pg_timeout(PATIENCE)


@functools.cache
def _key_value_store(world: World) -> dist.Store:
    """The key-value store through which the ranks connect; rank 0 or the launcher serves it.

    One store lives as long as the process. With a store for each group, a fast rank could connect
    to the previous group's store just before rank 0 closes it.
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
    """Raise LostPeer for the errors of a broken connection: the other process knows the reason."""
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
    """Run work() on every rank and return its result there.

    If it fails on any rank, every rank raises the same SitError, with `shared` set so that only
    rank 0 prints it. The message begins with the rank, unless that is 0 or all failed alike.
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
    """The values of all ranks, in the order of ranks; every rank must call it."""
    values = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)
    return values


def on_rank_0(world: World, work: Callable[[], T]) -> T:
    """Run work() on rank 0 and return its result, or raise its SitError, on every rank."""
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
    """Run the generator work() on rank 0, which yields its events; every rank gets its result."""
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
    """Yield a function that raises LostPeer if another rank has ended; use it in `process_group`.

    Long work in which ranks do not communicate needs it: not every launcher ends the others when
    one dies. All ranks must leave the block together (`wait_for_all`).
    """
    with contextlib.ExitStack() as held:
        try:
            lines = _lines(world) if world.size > 1 else []
        except OSError as error:
            address = os.environ["MASTER_ADDR"]
            raise SitError(
                f"the processes cannot meet at {address}: {error}",
                "set MASTER_ADDR to the machine of rank 0, and open its ports to the others",
            ) from None
        for line in lines:
            held.enter_context(line)
            line.setblocking(False)

        def check() -> None:
            for line in lines:
                # Nothing is ever sent, so recv either blocks or the other end has closed.
                with contextlib.suppress(BlockingIOError):
                    with contextlib.suppress(ConnectionError):
                        line.recv(1)
                    raise LostPeer("the connection to another process broke", DEBUG_HINT)

        yield check


def _lines(world: World) -> list[socket.socket]:
    """A connection between rank 0 and each other rank; gloo's own show a loss only when used."""
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
    """Yield every LOOK_SECONDS until every rank has called this."""
    if world.size == 1:
        return
    arrived = dist.barrier(async_op=True)
    while not arrived.is_completed():
        yield
        time.sleep(LOOK_SECONDS)
    arrived.wait()
