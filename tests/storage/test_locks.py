"""The lock of a file that is written."""

import os
import signal
import subprocess
import sys

import pytest

from sitcli.errors import SitError
from sitcli.storage.locks import lock


def test_only_one_process_holds_the_lock(tmp_path):
    """Catches: two writers on one file, a lock that outlives its holder, and litter."""
    path = tmp_path / "a.h5"
    script = (
        "import sys, time, os; from pathlib import Path; from sitcli.storage.locks import lock\n"
        "with lock(Path(sys.argv[1])):\n"
        "    if os.fork() == 0: print('held', flush=True); time.sleep(30); os._exit(0)\n"
        "    time.sleep(30)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(SitError, match="another process is writing"), lock(path):
            pass
        holder.kill()
        holder.wait()
        # Its child still lives.
        with lock(path):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
