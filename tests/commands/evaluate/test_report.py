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
    assert [row[0] for row in table.rows] == [*map(str, paths), "floor"]
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
