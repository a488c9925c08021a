"""The reference's side of a comparison: its kinds, its statistics, its floor."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.encode.stage import encode
from sitcli.commands.evaluate.reference import random_ranks
from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import SitError, UsageError
from sitcli.events import Progress, Warn
from sitcli.features import collect
from sitcli.features.statistics import save_statistics
from sitcli.metrics.moments import Moments, gaussian_of
from sitcli.settings.encode import EncodeSettings
from tests.commands.evaluate.measuring import events_and_result, pixel_settings, pixels, values
from tests.tiny import write_folder, write_samples


@pytest.mark.parametrize("kind", ["folder", "npz", "store", "samples"])
def test_every_kind_of_reference_gives_the_same_figure(pipeline, kind):
    """Catches: a kind whose images are read in another layout, size or order."""
    _, expected = events_and_result(evaluate(pixel_settings()))
    images = np.concatenate([pixels(12, 1), pixels(12, 2)])
    path = pipeline / ("ref.npz" if kind == "npz" else "ref")
    if kind == "folder":
        write_folder(path, images)
    elif kind == "npz":
        np.savez(path, arr_0=images)
    elif kind == "store":
        path = pipeline / "out.h5"
    else:
        write_samples(path, images)
    _, result = events_and_result(evaluate(pixel_settings(reference=path)))
    assert values(result) == pytest.approx(values(expected), rel=1e-9)


def test_several_stores_are_one_reference(pipeline):
    """Catches: samples of a run on several stores compared with the images of the first alone."""
    _, expected = events_and_result(evaluate(pixel_settings(samples=[pipeline / "samples/a"])))
    stores = [str(pipeline / f"{name}.h5") for name in ("cat", "dog")]
    for store in stores:
        settings = EncodeSettings(
            source=pipeline / "images" / Path(store).stem,
            out=Path(store),
            vae="pixels",
            image_size=8,
            device="cpu",
            workers=0,
        )
        events_and_result(encode(settings))
    meta = dict(
        store=stores[0], stores=stores, checkpoint="runs/a/step-0000010", mode="ode", cfg_scale=1.0
    )
    write_samples(pipeline / "samples" / "b", pixels(20, 3), **meta)
    _, result = events_and_result(evaluate(pixel_settings(samples=[pipeline / "samples/b"])))
    assert values(result) == pytest.approx(values(expected), rel=1e-9)
    assert result.data["figures"][0]["reference"]["num"] == 24
    assert (pipeline / "cat+dog.stats").is_dir()
    os.remove(stores[1])
    with pytest.raises(SitError, match=r"dog\.h5, is not there any more"):
        events_and_result(evaluate(pixel_settings(samples=[pipeline / "samples/b"])))


def test_statistics_alone_give_the_distance_but_no_floor(pipeline):
    """Catches: a floor made up for an npz without images, statistics of another extractor, and
    metrics that need images."""
    images = np.concatenate([pixels(12, 1), pixels(12, 2)]).transpose(0, 3, 1, 2)
    total = Moments(192)
    total.add(images.reshape(24, -1) / 255)
    path = pipeline / "s.npz"
    save_statistics(path, gaussian_of(total), features="pixels")
    _, expected = events_and_result(evaluate(pixel_settings()))
    events, result = events_and_result(evaluate(pixel_settings(reference=path)))
    assert values(result) == pytest.approx(values(expected), rel=1e-6)
    assert result.data["figures"][0]["floor"] is None
    assert result.data["figures"][0]["real"] is None
    assert any(
        "what real images get is not known" in event.text
        for event in events
        if isinstance(event, Warn)
    )
    with pytest.raises(UsageError, match="statistics only"):
        events_and_result(evaluate(pixel_settings(reference=path, kid=True)))
    save_statistics(path, gaussian_of(total), features="inception:6726825d")
    with pytest.raises(SitError, match="inception:6726825d"):
        events_and_result(evaluate(pixel_settings(reference=path)))


def test_a_reference_that_moved_or_lost_images_is_named(pipeline):
    """Catches: statistics of what is left of a reference."""
    os.remove(pipeline / "images/cat/003.png")
    with pytest.raises(SitError, match=r"cat/003\.png") as caught:
        events_and_result(evaluate(pixel_settings()))
    assert "--reference" in caught.value.hint
    (pipeline / "images").rename(pipeline / "elsewhere")
    with pytest.raises(SitError, match="images") as caught:
        events_and_result(evaluate(pixel_settings()))
    assert "--reference" in caught.value.hint
    (pipeline / "out.h5").unlink()
    with pytest.raises(SitError, match=r"out\.h5") as caught:
        events_and_result(evaluate(pixel_settings()))
    assert "--reference" in caught.value.hint
    assert not (pipeline / "samples/a/metrics.json").exists()


def real_figures(result):
    return {f["metric"].split("[")[0]: f["real"] for f in result.data["figures"]}


def test_real_images_and_kid_follow_the_seed(pipeline):
    """Catches: stand-ins or subsets that are drawn from a global generator."""
    path = write_samples(pipeline / "samples" / "few", pixels(10, 4))
    figures = []
    for seed in (0, 1, 0):
        settings = pixel_settings(samples=[path], reference=pipeline / "out.h5", seed=seed)
        figures.append(events_and_result(evaluate(settings))[1].data["figures"][0])
    assert figures[0]["floor"] == figures[2]["floor"] != figures[1]["floor"]
    assert figures[0]["value"] == pytest.approx(figures[1]["value"], rel=1e-9)


def test_real_figures_are_those_of_the_images_themselves(pipeline):
    """Catches: stand-ins that are among the others too, another number of them than of samples,
    and a floor claimed for metrics that have none: each figure against the same command on the
    two folders."""
    path = write_samples(pipeline / "samples" / "few", pixels(9, 4))
    settings = dict(fid=True, kid=True, prc=True, dc=True)
    _, result = events_and_result(
        evaluate(pixel_settings(samples=[path], reference=pipeline / "out.h5", **settings))
    )
    found = real_figures(result)
    assert {tuple(real["numbers"]) for real in found.values()} == {(9, 15)}
    floors = {f["metric"].split("[")[0]: f["floor"] for f in result.data["figures"]}
    assert floors == {
        name: found[name]["value"] if name in ("FD", "KD") else None for name in found
    }
    images = np.concatenate([pixels(12, 1), pixels(12, 2)])
    chosen = random_ranks(24, np.repeat([0, 1], 12), 0) < 9
    write_folder(pipeline / "chosen", images[chosen])
    write_folder(pipeline / "others", images[~chosen])
    _, again = events_and_result(
        evaluate(
            pixel_settings(samples=[pipeline / "chosen"], reference=pipeline / "others", **settings)
        )
    )
    for name, value in values(again).items():
        assert found[name.split("[")[0]]["value"] == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_real_distances_are_kept_and_measured_without_another_pass(pipeline, monkeypatch):
    """Catches: a second pass over a reference whose features are too many to keep, for samples of
    another number; statistics of 0.7.0 that are measured again; and the wrong rest, for which the
    stand-ins are taken out of the sums of all."""
    few = write_samples(pipeline / "samples" / "few", pixels(10, 4))
    fewer = write_samples(pipeline / "samples" / "fewer", pixels(7, 5))
    reference = pipeline / "out.h5"

    def run(path, **more):
        events, result = events_and_result(
            evaluate(pixel_settings(samples=[path], reference=reference, **more))
        )
        total = {event.total for event in events if isinstance(event, Progress)}
        return real_figures(result)["FD"], total

    expected, total = run(fewer)
    assert total == {7 + 24}
    shutil.rmtree(pipeline / "out.stats")
    monkeypatch.setattr(collect, "KEEP_BYTES", 4 * 192 * 20)
    assert run(few)[1] == {10 + 24}
    assert run(few)[1] == {10}
    found, total = run(fewer)
    assert total == {7 + 7}
    assert found["value"] == pytest.approx(expected["value"], rel=1e-9)
    assert found["numbers"] == expected["numbers"] == [7, 17]
    assert run(fewer)[1] == {7}


def test_an_unwritable_reference_folder_only_costs_the_keeping(pipeline):
    """Catches: an evaluation that fails because the data set is read-only."""
    (pipeline / "out.stats").write_text("in the way")
    events, result = events_and_result(evaluate(pixel_settings()))
    assert values(result)
    assert any("not kept" in event.text for event in events if isinstance(event, Warn))


@pytest.mark.parametrize("num", [1, 7, 40, 60])
def test_stand_ins_have_the_classes_of_the_reference(num: int) -> None:
    """Catches: stand-ins for a few samples that are of other classes than the reference's shares
    say, or an order that is none."""
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    ranks = random_ranks(60, labels, 3)
    assert sorted(ranks) == list(range(60))
    counts = np.bincount(labels[ranks < num], minlength=3)
    assert np.abs(counts - num * np.array([3, 2, 1]) / 6).max() < 1
    assert not np.array_equal(ranks, random_ranks(60, labels, 4))
    alone = random_ranks(60, None, 3)
    assert sorted(alone) == list(range(60))
    # Within a class the order is the random one, whatever the labels.
    members = labels == 0
    assert np.array_equal(np.argsort(ranks[members]), np.argsort(alone[members]))
