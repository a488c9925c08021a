"""The history of a run: what changed when, as meta.json keeps it."""

import json

import pytest

from sitcli.runs.history import Change, History, history_in, is_history

CHANGES = History(
    (
        Change(10, 80, {"lr": (1e-4, 3e-4), "clip": (0.0, 1.0)}),
        Change(20, 160, {"latents": (50, 70), "schedule": ("constant", "cosine")}),
        Change(30, 320, {"flip": (True, False), "t_shift": (None, "0.5"), "latents": (70, 70)}),
    )
)


def test_it_comes_back():
    """Catches: a change that is read otherwise than it was written."""
    lines = json.loads(json.dumps(CHANGES.as_plain()))
    assert is_history(lines)
    assert history_in({"history": lines}) == CHANGES
    assert history_in({}) == History()


def test_words():
    """Catches: a change that people cannot read."""
    assert CHANGES.marks == [
        (10, "lr 0.0003, not 0.0001; clip 1, not 0"),
        (20, "other latents, of 70 images, not 50; schedule cosine, not constant"),
        (30, "flip off, not on; t-shift 0.5, not off; other latents, of 70 images, not 70"),
    ]


def test_a_schedule_counts_from_its_own_change():
    """Catches: a cosine that begins in the middle, or again at every other change."""
    assert History().schedule_from == 0
    assert History(CHANGES.changes[:1]).schedule_from == 0
    assert CHANGES.schedule_from == 20


def test_other_images_begin_an_epoch():
    """160 images of 50 are 4 epochs, the last cut short; 160 more of 70 are 3."""
    assert History(CHANGES.changes[:1]).data_began == (0, 0)
    assert History(CHANGES.changes[:2]).data_began == (160, 4)
    assert CHANGES.data_began == (320, 7)


@pytest.mark.parametrize(
    "lines",
    [
        None, {}, [1], [{}], [{"step": 1, "images": 1}],
        [{"step": -1, "images": 1, "settings": {}}],
        [{"step": 1, "images": None, "settings": {}}],
        [{"step": 1, "images": 1, "settings": {"lr": 1}}],
        [{"step": 1, "images": 1, "settings": {"lr": [1, 2, 3]}}],
        [{"step": 1, "images": 1, "settings": {"latents": [0, 5]}}],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_history_is_found(lines):
    """Catches: a damaged meta.json that ends in a traceback."""
    assert not is_history(lines)
