"""A tiny measurement of `sit bench`."""

from __future__ import annotations

from sitcli.commands.bench.stage import bench
from sitcli.settings.tools import BenchSettings
from tests.tiny import finish

TINY = dict(model="SiT-Mi/8", batch_size=2, rounds=2, device="cpu", precision="fp32")


def measured(what: str, **more):
    return finish(bench(BenchSettings(what=what, **TINY | more)))
