"""--freeze and --train-only: which parameters are trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sitcli.errors import UsageError


def trained_names(
    names: Sequence[str], *, freeze: Sequence[str] | None, train_only: Sequence[str] | None
) -> set[str]:
    """Those of a network's parameters that are trained.

    A pattern is that of a shell; it may also name the beginning of names, up to a dot.
    Raises UsageError for a pattern that is no parameter's, and if nothing is left to train.
    """
    trained = set(names)
    if train_only:
        trained = {name for each in train_only for name in _matching(names, each, "train-only")}
    for each in freeze or ():
        trained -= set(_matching(names, each, "freeze"))
    if not trained:
        raise UsageError("--freeze leaves nothing to train", "freeze less")
    return trained


def _matching(names: Sequence[str], pattern: str, flag: str) -> list[str]:
    patterns = pattern, f"{pattern}.*"
    found = [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
    if not found:
        parts = sorted({name.split(".")[0] for name in names})
        raise UsageError(
            f"--{flag} '{pattern}' is no parameter of this network",
            f"it has {', '.join(parts)}; in a block e.g. 'blocks.0.attn.qkv'",
        )
    return found
