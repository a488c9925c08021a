"""The labels of the images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sitcli.commands.sample.labels import labels_of
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.sample import SampleSettings
from tests.tiny import draw, make_run, write_meta


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


def test_random_labels_do_not_depend_on_how_many_there_are(run: Path) -> None:
    """Catches: labels drawn one after the other, so that more images change those before them."""
    checkpoint = open_checkpoint(run)

    def labels(num: int, **more) -> list[int]:
        settings = SampleSettings(num=num, labels="random", **more)
        return labels_of(settings, checkpoint).tolist()

    assert labels(9) == labels(20)[:9]
    assert labels(20) != labels(20, seed=1)
    assert set(labels(20, classes="2,red")) == {0, 2}


def test_balanced_labels_differ_by_one_at_most(run: Path) -> None:
    """Catches: one class more often than another by more than the rest of a division."""
    labels = labels_of(SampleSettings(num=10), open_checkpoint(run)).tolist()
    assert sorted(labels.count(label) for label in range(3)) == [3, 3, 4]


def test_classes_without_images_are_not_drawn(run: Path) -> None:
    """Catches: samples of a class of which nothing was learned, drawn unasked or named."""
    checkpoint = open_checkpoint(run)
    checkpoint.meta["latents"]["empty_classes"] = [1]
    assert labels_of(SampleSettings(num=4), checkpoint).tolist() == [0, 2, 0, 2]
    assert set(labels_of(SampleSettings(num=30, labels="random"), checkpoint)) == {0, 2}
    for named in ("0,1", "green"):
        with pytest.raises(UsageError, match="class 1 had no image when the model was trained"):
            labels_of(SampleSettings(num=4, classes=named), checkpoint)


def test_words_name_the_classes_of_folders_that_wordnet_numbers(run: Path) -> None:
    """Catches: a run trained on ImageNet's folders that knows its classes by number alone."""
    meta = open_checkpoint(run).path / "meta.json"
    facts = json.loads(meta.read_text())
    facts["latents"]["class_names"] = ["n01440764", "n02099601", "n02123045"]
    write_meta(meta, facts)
    samples = draw(run, "words", num=3, classes="tabby cat,golden retriever,0", png=True)
    assert samples.labels.tolist() == [2, 1, 0]
    assert samples.meta["class_names"] == facts["latents"]["class_names"]
    names = sorted(path.name for path in (samples.directory / "png").iterdir())
    assert names == ["000000_tabby.png", "000001_golden-retriever.png", "000002_tench.png"]
    # The set goes on, and knows that the same words were meant.
    assert draw(run, "words", num=3, classes="tabby cat,golden retriever,0").complete
