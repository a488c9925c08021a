"""The examples are scripts, several of them with a report.py: none may answer for another's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _no_modules_left() -> Iterator[None]:
    yield
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(f"{EXAMPLES}/"):
            del sys.modules[name]
