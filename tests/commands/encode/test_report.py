"""What `sit encode-latents` says at its end."""

import json
from pathlib import Path

from sitcli.commands.encode.report import describe, faults
from sitcli.commands.encode.stage import plan
from sitcli.events import Warn
from sitcli.images.source import open_source
from sitcli.latents.store import LatentStore
from tests.commands.encode.pictures import encoded, settings_for, texts


def test_next_is_plain_train_where_train_would_find_it(source, tmp_path, monkeypatch):
    """Catches: a suggestion that trains on another store."""
    monkeypatch.chdir(tmp_path)
    assert encoded(settings_for(source, Path("a.h5")))[0].next == "sit train"
    encoded(settings_for(source, Path("b.h5")))
    assert encoded(settings_for(source, Path("a.h5")))[0].next == "sit train --latents a.h5"


def add(source, *names):
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")


def test_a_class_that_cannot_be_read_is_named(source, out):
    """Catches: "4 other files skipped" for a whole class, whose number the next class takes."""
    add(source, "cow/1.heic", "cow/2.heic", "cow/3.heic", "cow/4.heic", "dog/x.heic", "a.txt")
    expected = [
        "class 1, cow, has no image that can be read, and keeps its number: 4 files, cow/1.heic, "
        "cow/2.heic, cow/3.heic, ...",
        "1 picture with an ending that sit cannot read skipped: dog/x.heic",
    ]
    settings = settings_for(source, out)
    ahead = plan(settings)
    assert ahead.data["warnings"] == expected
    assert list(ahead.summary.values())[-2:] == expected
    result, events = encoded(settings)
    assert texts(events, Warn) == expected
    assert "10 images, 3 classes, 6 other files skipped (5 .heic, 1 .txt)" in texts(events)[0]
    assert result.summary["empty"] == "1 class: 1 (cow)"
    store = LatentStore.open(out)
    assert store.class_names == ["cat", "cow", "dog"]
    assert (store.labels.tolist(), store.empty_classes) == ([0] * 5 + [2] * 5, [1])


def test_many_such_classes_are_counted(source):
    """Catches: a thousand lines of warnings."""
    add(source, *(f"e{i}/1.heic" for i in range(6)))
    lines = faults(open_source(source))
    assert len(lines) == 4
    assert lines[-1] == "so do 3 more classes: e3, e4, e5"


def test_a_dataset_json_is_named_with_what_it_lacks(source):
    """Catches: labels from a file that nobody hears of, and images lost on the way."""
    names = [item.name for item in open_source(source).items]
    labels = [[name, 3 * (i > 4)] for i, name in enumerate([*names, "cat/lost.png"])]
    (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    opened = open_source(source)
    assert "10 images, 4 classes by dataset.json" in describe(opened)
    assert faults(opened) == [
        "2 classes of 4 without an image: 1, 2",
        "dataset.json has labels for 1 image that the source lacks: cat/lost.png",
    ]
