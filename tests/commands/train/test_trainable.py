"""--freeze and --train-only."""

import pytest

from sitcli.commands.train.trainable import trained_names
from sitcli.errors import UsageError

NAMES = ["x_embedder.weight", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "blocks.10.a"]


@pytest.mark.parametrize(
    ("freeze", "train_only", "left"),
    [
        (["blocks"], None, [0]),
        (["blocks.1"], None, [0, 1, 3]),
        (["blocks.[01].*"], None, [0, 3]),
        (["blocks.[01]"], None, [0, 3]),
        (None, ["*qkv*"], [1, 2]),
        (["blocks.0"], ["*qkv*"], [2]),
        (["x_embedder", "blocks.10"], None, [1, 2]),
    ],
    ids=str,
)
def test_patterns(freeze, train_only, left):
    """Catches: 'blocks.1' that takes block 10 too, or patterns that do not add up."""
    found = trained_names(NAMES, freeze=freeze, train_only=train_only)
    assert found == {NAMES[i] for i in left}


def test_patterns_of_nothing():
    """Catches: a misspelt pattern that freezes nothing, without a word."""
    with pytest.raises(UsageError, match="--freeze 'block' is no parameter") as failure:
        trained_names(NAMES, freeze=["block"], train_only=None)
    assert "it has blocks, x_embedder" in failure.value.hint
    with pytest.raises(UsageError, match="leaves nothing to train"):
        trained_names(NAMES, freeze=["*"], train_only=None)
