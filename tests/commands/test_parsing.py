"""The text of an option becomes a value, or an error that names the option."""

from __future__ import annotations

import pytest

from sitcli.commands.parsing import parse_checkpoint_blocks


def test_checkpoint_blocks_are_parsed() -> None:
    """Catches: every-0, which divides by zero, or a misspelling that means none."""
    texts = ["none", "all", "every-1", "every-12"]
    assert [*map(parse_checkpoint_blocks, texts)] == [0, 1, 1, 12]
    for text in ("", "every", "every-0", "every-", "2", "All", "every-1.5", "every--2"):
        with pytest.raises(ValueError, match="is none of none, all, every-2"):
            parse_checkpoint_blocks(text)
