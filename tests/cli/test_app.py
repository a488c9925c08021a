"""The command line as a user meets it: help, versions, misspellings, exit codes, completion."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import typer

from sitcli import __version__
from sitcli.cli.app import app
from tests.cli.terminal import COMMANDS, plain, python, sit

HEAVY = {"torch", "numpy", "h5py", "diffusers", "deepspeed", "torchvision", "matplotlib", "PIL"}


def test_the_commands_are_these():
    """Catches: a command that was dropped or renamed, and one these tests do not know."""
    assert list(typer.main.get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_fast_and_complete(command):
    """Catches: an import that makes help take seconds, and markup that eats `[default: ...]`."""
    program = (
        "import sys, sitcli.__main__ as m\n"
        f"sys.argv = {['sit', *command.split(), '--help']!r}\n"
        "try:\n    m.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    help_text, _, heavy = plain(done.stdout).rpartition("HEAVY ")
    assert heavy.strip() == "[]"
    assert f"Usage: sit {command}".strip() in help_text
    if command:
        assert "TODO" not in help_text
        assert re.search(rf"^ sit {command}\b", help_text, re.MULTILINE), "no example to type"
    if command == "train":
        assert "[default: SiT-XL/2 on a GPU" in " ".join(help_text.replace("│", " ").split())


def test_help_survives_forced_colour():
    """Catches: help that fails under CI systems, which pretend to be terminals."""
    done = sit("train", "--help", FORCE_COLOR="1", GITHUB_ACTIONS="true")
    assert done.returncode == 0
    assert "--interpolant" in plain(done.stdout)


def test_version():
    """Catches: a version that is not the package's, and noise beside it."""
    done = sit("--version")
    assert (done.returncode, done.stdout) == (0, f"sit {__version__}\n")


def test_version_does_not_come_from_the_environment():
    """Catches: SIT_VERSION=1, set for other reasons, turning every command into --version."""
    done = sit("flops", "--help", SIT_VERSION="1")
    assert "Usage: sit flops" in plain(done.stdout)


def test_no_arguments_shows_help():
    """Catches: an empty `error:` line after the help."""
    done = sit()
    assert "encode-latents" in plain(done.stdout + done.stderr)
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["flops", "--guidence"], "--guidance"),
        (["train", "--interpolent", "gvp"], "--interpolant"),
        (["trian"], "train"),
        (["--versoin"], "--version"),
        (["train", "--interpolant", "gpv"], "gvp"),
        (["flops", "--image-size", "big"], "--image-size"),
        (["flops", "--image-size", "0"], "--image-size"),
        (["encode-latents"], "source"),
        (["encode-latents", "x-0.tar", "x-1.tar", "x-2.tar", "a.h5"], "quote it: 'shards/*.tar'"),
        (["encode-latents", "x.tar", "a.h5", "b.h5"], "extra argument"),
        (["train", "--lr"], "--lr"),
    ],
    ids=" ".join,
)
def test_misuse_is_two_lines_and_exit_2(arguments, suggestion):
    """Catches: swallowed options (parse_known_args), tracebacks, and unhelpful messages."""
    done = sit(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert suggestion in done.stderr.lower()


def test_completion_offers_commands_options_and_choices():
    """Catches: completion broken by what a command prints or imports."""

    def complete(*words):
        line = " ".join(["sit", *words])
        environment = {"_SIT_COMPLETE": "complete_bash", "COMP_WORDS": line}
        return sit(COMP_CWORD=str(len(words)), **environment).stdout.split()

    assert complete("fl") == ["flops"]
    assert complete("train", "--interp") == ["--interpolant"]
    assert complete("train", "--interpolant", "") == ["linear", "gvp", "vp"]


def test_show_completion():
    """Catches: a program name in the script that is not the one users type."""
    # Typer looks for the shell among the parent processes: there must be one, whoever runs us.
    script = f"{shlex.quote(sys.executable)} -m sitcli --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert "sit" in done.stdout
    assert "_SIT_COMPLETE" in done.stdout


def probe(body):
    """A program: `main()` with one more command, whose body is `body`, called."""
    return (
        "import sys\nfrom sitcli.cli.app import app, main\n"
        "from sitcli.errors import SitError, UsageError, Interrupted\n"
        f"@app.command('probe')\ndef probe():\n    {body}\n"
        "sys.argv = ['sit', 'probe']\nmain()"
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise SitError('it broke', 'mend it')", 1),
        ("raise UsageError('it broke', 'mend it')", 2),
        ("raise Interrupted('it broke', 'mend it', signal_number=15)", 143),
    ],
)
def test_our_errors_are_two_lines(body, code):
    """Catches: a traceback shown to a user, and an exit code scripts cannot rely on."""
    done = python("-c", probe(body), SIT_DEBUG="")
    assert done.returncode == code
    assert done.stderr == "error: it broke\nhint: mend it\n"
    assert "Traceback" in python("-c", probe(body), SIT_DEBUG="1").stderr


@pytest.mark.parametrize("bug", ["KeyError('bug')", "OSError(9, 'bad file descriptor')"])
def test_programming_errors_keep_their_traceback(bug):
    """Catches: a catch-all that hides our own bugs."""
    done = python("-c", probe(f"raise {bug}"), SIT_DEBUG="")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_no_traceback():
    """Catches: a full disk that looks like a bug of ours, wherever it is met."""
    with open("/dev/full", "w") as full:
        body = "print('x' * 9999, flush=True)"
        done = subprocess.run(
            [sys.executable, "-c", probe(body)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full\nhint: ")


def test_ctrl_c_exits_130():
    """Catches: a KeyboardInterrupt's traceback."""
    done = python("-c", probe("raise KeyboardInterrupt"))
    assert (done.returncode, done.stderr.strip()) == (130, "error: interrupted")


def test_a_reader_that_went_away_is_no_traceback():
    """Catches: the noise of `sit flops | head -1`."""
    body = "[print('x' * 9999, flush=True) for _ in range(99)]"
    with subprocess.Popen(
        [sys.executable, "-c", probe(body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_threads_sleep_while_they_wait():
    """Catches: the loss of a factor of 25 on a busy laptop, and a user's own choice undone."""
    body = "import os; print(os.environ['OMP_WAIT_POLICY'])"
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    chosen = {**unset, "OMP_WAIT_POLICY": "ACTIVE"}
    for environment, expected in ((unset, "PASSIVE\n"), (chosen, "ACTIVE\n")):
        command = [sys.executable, "-c", probe(body)]
        assert subprocess.check_output(command, env=environment, text=True) == expected


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_is_no_failure(closed):
    """Catches: a traceback where stdout is closed, and notes on stdout where stderr is."""
    command = f'"{sys.executable}" -m sitcli flops SiT-S/2 --no-check --json {closed}>&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    if closed == "2":
        assert json.loads(done.stdout)["models"]
