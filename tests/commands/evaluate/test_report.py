"""The table that `sit evaluate` prints."""

import json

import pytest

from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import UsageError
from sitcli.events import Progress
from tests.commands.evaluate.measuring import events_and_result, pixel_settings, pixels
from tests.tiny import write_samples


def test_several_sets_stand_in_one_table(pipeline):
    """Catches: figures under the wrong set, or a reference extracted for each of them."""
    for name, seed in (("b", 4), ("c", 5)):
        write_samples(pipeline / "samples" / name, pixels(20, seed, shift=10 * seed))
    paths = [pipeline / "samples" / name for name in "abc"]
    reference = pipeline / "out.h5"
    events, result = events_and_result(
        evaluate(pixel_settings(samples=paths, fid=True, kid=True, reference=reference))
    )
    assert {event.total for event in events if isinstance(event, Progress)} == {24 + 3 * 20}
    (table,) = result.tables
    assert table.header == ["samples", "N", "FD[pixels]", "KD[pixels]"]
    assert [row[0] for row in table.rows] == [*map(str, paths)]  # 24 images: no 20 and 20
    for path, each in zip(paths, result.data["sets"], strict=True):
        _, alone = events_and_result(
            evaluate(pixel_settings(samples=[path], fid=True, kid=True, reference=reference))
        )
        figures = json.loads((path / "metrics.json").read_text())["figures"]
        assert [f["value"] for f in figures] == [f["value"] for f in each["figures"]]
        assert [f["value"] for f in figures] == [f["value"] for f in alone.data["figures"]]
    small = write_samples(pipeline / "samples/small", pixels(20, 1, side=4))
    for wrong, words in (([paths[0], small], "one size"), ([paths[0], paths[0]], "named twice")):
        with pytest.raises(UsageError, match=words):
            events_and_result(evaluate(pixel_settings(samples=wrong, reference=reference)))
    with pytest.raises(UsageError, match="different images"):
        events_and_result(evaluate(pixel_settings(samples=paths)))


def test_real_images_stand_below_sets_of_each_size(pipeline):
    """Catches: real images of one number beside samples of another, and their figures under the
    word of a ceiling or a floor where they are none."""
    few = write_samples(pipeline / "samples" / "few", pixels(6, 4))
    more = write_samples(pipeline / "samples" / "more", pixels(12, 5))
    settings = dict(fid=True, prc=True, reference=pipeline / "out.h5")
    _, result = events_and_result(evaluate(pixel_settings(samples=[few, more], **settings)))
    (table,) = result.tables
    assert [row[:2] for row in table.rows[2:]] == [["real images", "6"], ["real images", "12"]]
    for rows, each in zip(table.rows[2:], result.data["sets"], strict=True):
        assert rows[2:] == [f"{f['real']['value']:.5g}" for f in each["figures"]]
    _, result = events_and_result(evaluate(pixel_settings(samples=[few], **settings)))
    assert result.tables[0].header == ["metric", "value", "real images", "N", "reference"]
    about = result.summary["real images"]
    assert about.startswith("6 images of the reference in place of the samples, compared with its")
    assert "other 18" in about
    for text in (about, *result.tables[0].header):
        assert "ceiling" not in text
    _, result = events_and_result(evaluate(pixel_settings(samples=[pipeline / "samples/a"])))
    none = "none: it takes 40 images of the reference, and there are 24"
    assert result.summary["real images"] == none
    assert result.tables[0].rows[0][2] == "-"
