"""The labels of the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.errors import UsageError
from tests.tiny import draw, make_run


def test_classes_and_labels(run: Path) -> None:
    """Catches: names or numbers read as other classes, or labels that are not balanced."""
    assert draw(run, "a", num=5).labels.tolist() == [0, 1, 2, 0, 1]
    assert draw(run, "b", num=4, classes="blue, 0").labels.tolist() == [2, 0, 2, 0]
    random = draw(run, "c", num=40, labels="random", steps=1).labels
    assert set(random) == {0, 1, 2}
    assert random.tolist() != sorted(random.tolist())
    wrong = [("7", "no class 7"), ("bleu", "'bleu'"), (" , ", "names no class"), ("", "no class")]
    for text, message in wrong:
        with pytest.raises(UsageError, match=message):
            draw(run, "d", classes=text)


def test_unconditional(tmp_path: Path) -> None:
    """Catches: labels demanded from, or guidance accepted for, a model without classes."""
    run = make_run(tmp_path, classes=False)
    assert draw(run, "out").complete
    with pytest.raises(UsageError, match="unconditional"):
        draw(run, "out2", cfg_scale=2.0)
    for options in ({"classes": "0"}, {"classes": ""}, {"labels": "random"}):
        with pytest.raises(UsageError, match="unconditional"):
            draw(run, "out3", **options)
