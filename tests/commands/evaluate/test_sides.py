"""Samples that are of some of the reference's classes only."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sitcli.commands.evaluate.sides import shared_classes
from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import UsageError
from sitcli.events import Note, Progress, Warn
from sitcli.features.statistics import save_statistics
from sitcli.metrics.moments import gaussian_of
from tests.commands.evaluate.measuring import events_and_result, pixel_settings, pixels, values
from tests.tiny import moments, write_folder, write_samples


def side(labels, names=()):
    labels = None if labels is None else np.array(labels)
    return SimpleNamespace(labels=labels, class_names=list(names), path="x")


def known(samples, reference):
    return shared_classes(samples, reference, np.arange(len(reference.labels)))


def test_names_are_matched_not_numbers():
    """Catches: class 0 of the samples taken for class 0 of a reference that sorts other names."""
    reference = side([0, 0, 0, 1, 2, 2], ["ant", "bee", "cat"])
    found = known(side([0, 0, 1], ["cat", "dog"]), reference)
    assert found == (["cat"], [2], 3, pytest.approx(2 / 6), ["dog"], "name")
    assert not found.whole
    found = known(side([2, 1, 0], ["bee", "cat", "ant"]), reference)
    assert found.whole
    # A name that no image of the reference has any more is not one of its classes.
    found = shared_classes(side([0], ["ant"]), reference, np.array([0, 1, 3]))
    assert (found.covered, found.total, found.share) == (["ant"], 2, pytest.approx(2 / 3))


@pytest.mark.parametrize("names", [(), ("ant", "bee", "cat")])
def test_numbers_are_matched_where_a_side_has_no_names(names):
    found = known(side([1, 1]), side([0, 1, 2, 2], names))
    assert found == (["1"], [1], 3, 0.25, [], "number")


def test_numbers_for_names_are_numbers():
    """Catches: ImageNet from a dataset.json, whose classes are called 0 to 999, that has no class
    in common with ImageNet's."""
    reference = side([0, 1, 2, 2], ["0", "1", "2"])
    found = known(side([1, 1], ["ant", "bee", "cat"]), reference)
    assert found == (["1"], [1], 3, 0.25, [], "number")
    assert known(reference, side([0, 1, 2], ["ant", "bee", "cat"])).by == "number"
    assert known(reference, side([1], ["0", "1", "2", "3"])).by == "name"


@pytest.mark.parametrize(
    ("samples", "reference", "why"),
    [
        (side([0], ["a"]), side([0], ["0", "1"]), "no name of a class in common"),
        (side([0, 1]), None, "the reference has no images"),
        (side(None), side([0, 1]), "the samples have no classes"),
        (side([0, 0]), side([0, 1]), "the samples have no classes"),
        (side([0, 1]), side([0, 0]), "the reference has no classes"),
        (side([0, 3]), side([0, 1], ["a", "b"]), "number their classes differently"),
        (side([0], ["a"]), side([0], ["b"]), "no name of a class in common"),
        (side([0, 1], ["a"]), side([0], ["a"]), "have no names"),
    ],
)
def test_what_cannot_be_known_is_said(samples, reference, why):
    """Catches: classes made up for a model without any, or for numbers that do not fit."""
    found = shared_classes(samples, reference, np.arange(2 if reference is None else 1))
    if reference is not None:
        found = known(samples, reference)
    assert why in found


@pytest.fixture
def dogs(pipeline):
    """Samples of one of the store's two classes, under another number than the store's."""
    return write_samples(
        pipeline / "samples" / "dogs",
        pixels(10, 4),
        labels=np.zeros(10, np.int64),
        class_names=["dog", "cat"],
        store=str(pipeline / "out.h5"),
    )


def run(path, **more):
    events, result = events_and_result(evaluate(pixel_settings(samples=[path], **more)))
    told = {kind: [e.text for e in events if isinstance(e, kind)] for kind in (Warn, Note)}
    total = {event.total for event in events if isinstance(event, Progress)}
    return result, told, total


def test_samples_of_one_class_are_said_to_be(pipeline, dogs):
    """Catches: samples of one class compared with all in silence, in the table or metrics.json."""
    result, told, _ = run(dogs)
    (text,) = [text for text in told[Warn] if "classes" in text]
    assert "samples are of 1 of 2 classes of the reference (dog), which have 50.0%" in text
    assert "--reference-classes same" in text
    assert result.tables[0].rows[0][-1] == "out.h5 (24, samples of 1 of 2 classes)"
    (figure,) = json.loads((dogs / "metrics.json").read_text())["figures"]
    assert figure["reference"]["classes"] == {
        "compared": "all", "samples": 1, "reference": 2, "names": ["dog"], "share": 0.5,
        "not_in_reference": [], "by": "name",
    }  # fmt: skip


def test_same_compares_with_the_classes_of_the_samples(pipeline, dogs):
    """Catches: the other class's images, or kept features and statistics of all classes, in the
    figure; an entry of metrics.json that replaces that of all."""
    everything, _, _ = run(dogs, fid=True, kid=True)
    result, told, total = run(dogs, fid=True, kid=True, reference_classes="same")
    assert total == {10 + 12}
    write_folder(pipeline / "only", pixels(12, 2))
    expected, _, _ = run(dogs, fid=True, kid=True, reference=pipeline / "only")
    assert values(result) == pytest.approx(values(expected), rel=1e-9)
    assert values(result)["FD[pixels]"] != pytest.approx(values(everything)["FD[pixels]"])
    assert result.tables[0].rows[0][-1] == "out.h5 (12, 1 of 2 classes)"
    assert any("1 of 2 of its classes" in text for text in told[Note])
    again, _, _ = run(dogs, fid=True, kid=True, reference_classes="same")
    assert values(again) == values(result)
    again, _, _ = run(dogs, fid=True, kid=True)
    assert values(again) == values(everything)
    figures = json.loads((dogs / "metrics.json").read_text())["figures"]
    compared = sorted(f["reference"]["classes"].get("compared", "-") for f in figures)
    assert compared == ["-", "-", "all", "all", "same", "same"]


def test_same_takes_reference_num_of_these_classes(dogs):
    result, _, _ = run(dogs, reference_classes="same", reference_num=6)
    assert result.data["figures"][0]["reference"]["num"] == 6
    with pytest.raises(UsageError, match="has 12 images"):
        run(dogs, reference_classes="same", reference_num=13)


def test_same_does_not_take_a_files_statistics_of_all_classes(pipeline, dogs):
    """Catches: mu and sigma of ADM's file, which are of all classes, beside images of one."""
    images = np.concatenate([pixels(12, 1), pixels(12, 2)])
    labels = np.arange(24) // 12
    file = pipeline / "adm.npz"
    flat = moments(images.transpose(0, 3, 1, 2).reshape(24, -1) / 255)
    save_statistics(file, gaussian_of(flat), features="pixels", arr_0=images, arr_1=labels)
    named = dict(reference=file, reference_classes="same")
    unnamed = write_samples(dogs.with_name("unnamed"), pixels(10, 4), labels=np.ones(10, np.int64))
    result, told, _ = run(unnamed, **named)
    (figure,) = result.data["figures"]
    assert figure["recipe"]["statistics"] == "of its images"
    assert figure["reference"]["num"] == 12
    assert figure["reference"]["classes"]["by"] == "number"
    assert any("matched by number" in text for text in told[Warn])
    only, _, _ = run(unnamed, reference=write_folder(pipeline / "only", pixels(12, 2)))
    assert figure["value"] == pytest.approx(only.data["figures"][0]["value"], rel=1e-9)


def test_same_is_refused_where_classes_are_not_known(pipeline, dogs):
    """Catches: a comparison with all, although the same classes were asked for."""
    flat = write_folder(pipeline / "flat", pixels(12, 2))
    with pytest.raises(UsageError, match="cannot be matched: the reference has no classes"):
        run(dogs, reference=flat, reference_classes="same")
    cats = write_samples(
        dogs.with_name("cats"), pixels(10, 5), labels=np.zeros(10, np.int64), class_names=["cat"]
    )
    settings = pixel_settings(
        samples=[dogs, cats], reference=pipeline / "out.h5", reference_classes="same"
    )
    with pytest.raises(UsageError, match="are of different classes"):
        events_and_result(evaluate(settings))
    result, _, _ = run(dogs, reference=flat)
    record = result.data["figures"][0]["reference"]["classes"]
    assert record == {"unknown": "the reference has no classes"}
