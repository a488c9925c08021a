"""The ``sit`` command: its subcommands, and how every failure ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

import typer

from sitcli import __version__
from sitcli.cli import (
    bench,
    ema,
    encode,
    evaluate,
    export,
    flops,
    import_latents,
    import_weights,
    inspect,
    quickstart,
    sample,
    train,
    watch,
)
from sitcli.cli.options import unwrap
from sitcli.cli.output import error
from sitcli.errors import Interrupted, LostPeer, SitError
from sitcli.machine.children import LIFELINE, watch_lifeline
from sitcli.machine.world import adopt_slurm

app = typer.Typer(
    name="sit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
LOST_SECONDS = 15.0
LAUNCHED = LIFELINE in os.environ  # by another `sit`


def _version(show: bool) -> None:
    if show:
        print(f"sit {__version__}")
        raise typer.Exit


HELP = """Diffusion and flow transformers (DiT, SiT), from a folder of images to a metric.

Each command reads what the one before it wrote. If you do not name an input, it takes the newest
one below this folder. Every option can also come from the environment (SIT_TRAIN_LR=3e-4) or from
--config FILE.yaml. To see it all work, without data or a download: sit quickstart
"""


@app.callback(help=unwrap(HELP))
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """The options before the subcommand."""


STAGES = (encode, import_latents, train, sample, evaluate, flops)
OTHERS = (ema, import_weights, export, inspect, watch, bench, quickstart)


for module in (*STAGES, *OTHERS):
    module.register(app)


def _origin(failure: Exception) -> str:
    """Where a bad value came from, for people; '' if it was typed."""
    context, parameter = getattr(failure, "ctx", None), getattr(failure, "param", None)
    if context is None or parameter is None:
        return ""
    source = context.get_parameter_source(parameter.name)
    places = {"DEFAULT_MAP": " (from the --config file)", "ENVIRONMENT": " (from the environment)"}
    return places.get(getattr(source, "name", ""), "")


def _of_pattern(message: str, hint: str) -> tuple[str, str]:
    """The message and hint for what the parser says, if the shell has expanded a pattern."""
    shards = sum(word.endswith((".tar", ".parquet")) for word in sys.argv)
    if "extra argument" not in message or shards < 2:
        return message, hint
    return f"the shell made {shards} files of a pattern", "quote it: 'shards/*.tar'"


def _say_failure(failure: SitError) -> None:
    """Print the failure in one process: rank 0 if all ranks share it, else the rank that had it."""
    rank = int(os.environ.get("RANK", 0))
    if isinstance(failure, LostPeer):
        if LAUNCHED:
            return  # the process that started us prints what happened
        # The failed process has printed its error; the launcher ends this one when it sees that.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LOST_SECONDS)
    if rank and (failure.shared or isinstance(failure, Interrupted)):
        return
    error(f"rank {rank}: {failure.message}" if rank else failure.message, failure.hint)


def main() -> None:
    """Run the command line; exit 0 ok, 1 our errors, 2 usage, 130 Ctrl-C."""
    if sys.platform == "win32":
        error("sit needs Linux or macOS", "on Windows, run it within WSL")
        sys.exit(1)
    # After `>&-` Python lacks the stream: lines meant for stderr would go to stdout, and the next
    # file opened would get the stream's number, and receive what C libraries print.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if "LOCAL_RANK" in os.environ:
        # The deepspeed launcher puts its own flag before the subcommand.
        sys.argv[1:] = [a for a in sys.argv[1:] if not a.startswith("--local_rank=")]
    adopt_slurm()
    watch_lifeline()
    # Threads of GNU OpenMP spin while they wait for each other: with another program on one of two
    # cores a training step then takes 25 times as long as with threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(prog_name="sit", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        _say_failure(Interrupted("interrupted", signal_number=signal.SIGINT))
        sys.exit(130)
    except SitError as failure:
        if os.environ.get("SIT_DEBUG") == "1":
            raise
        _say_failure(failure)
        sys.exit(failure.exit_code)
    except BrokenPipeError:
        # The reader of our stdout went away (`sit flops | head`): not our failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as failure:
        # A full disk is no bug, wherever it happens.
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT) or os.environ.get("SIT_DEBUG") == "1":
            raise
        where = f" of {failure.filename}" if failure.filename else ""
        error(f"the disk{where} is full", "free some space; the same command goes on")
        sys.exit(1)
    except Exception as failure:
        # Typer's own usage errors; it exports no common base class for them.
        if not hasattr(failure, "format_message"):
            raise
        if os.environ.get("RANK", "0") != "0":
            sys.exit(failure.exit_code)  # all ranks have the same command line: rank 0 prints
        context = getattr(failure, "ctx", None)
        hint = f"{context.command_path} --help" if context is not None else "sit --help"
        message = failure.format_message().replace("Value error, ", "")
        if not message:
            # No arguments: the help is on the screen already.
            sys.exit(failure.exit_code)
        if close := getattr(failure, "possibilities", None):
            message, hint = failure.message, f"did you mean {close[0]}? See {hint}"
        message, hint = _of_pattern(message, hint)
        error(" ".join(message.split()) + _origin(failure), hint)
        sys.exit(failure.exit_code)
    if code == 130:
        # Typer turns Ctrl-C into this code itself, and prints nothing.
        _say_failure(Interrupted("interrupted", signal_number=signal.SIGINT))
    sys.exit(code if isinstance(code, int) else 0)
