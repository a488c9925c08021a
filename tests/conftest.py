"""What all tests run under, and the processes they start.

One thread unless OMP_NUM_THREADS says otherwise: tiny tensors gain nothing from more. Every test
begins with the same seed, so that it does not depend on those before it. Compiled graphs are kept
apart for each set of instructions: torch does not tell them apart, and aborts in one that was made
for others. And Ctrl-C is heard, which a shell's background job (`pytest &`) ignores, with all that
it starts.
"""

import getpass
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start too
torch.set_num_threads(int(THREADS))
GRAPHS = [
    *("sit-tests", getpass.getuser(), sys.implementation.cache_tag, torch.__version__),
    *(os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")),
]
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), "-".join(GRAPHS))
)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The generators that a test may draw from without naming one."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """The process of the tests is that of no command: with the freed memory of all of them it
    would grow until it cannot be forked. Of the session, as fixtures of a module run commands too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sitcli.machine.devices.keep_freed_memory", lambda: None)
        yield


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The file of a small latent store."""
    from tests.tiny import make_store  # here: tests of mathematics do not wait for its imports

    return make_store(tmp_path / "tiny.h5").path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose one checkpoint has random weights."""
    from tests.tiny import make_run

    return make_run(tmp_path)
