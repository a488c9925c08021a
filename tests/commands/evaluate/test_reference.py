"""The reference's side of a comparison: its kinds, its statistics, its floor."""

import os
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.encode.stage import encode
from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import SitError, UsageError
from sitcli.events import Warn
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
    assert any("no floor" in event.text for event in events if isinstance(event, Warn))
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


def test_the_floor_and_kid_follow_the_seed(pipeline):
    """Catches: halves or subsets that are drawn from a global generator."""
    figures = [
        events_and_result(evaluate(pixel_settings(seed=s)))[1].data["figures"][0] for s in (0, 1, 0)
    ]
    assert figures[0]["floor"] == figures[2]["floor"] != figures[1]["floor"]
    assert figures[0]["value"] == pytest.approx(figures[1]["value"], rel=1e-9)


def test_an_unwritable_reference_folder_only_costs_the_keeping(pipeline):
    """Catches: an evaluation that fails because the data set is read-only."""
    (pipeline / "out.stats").write_text("in the way")
    events, result = events_and_result(evaluate(pixel_settings()))
    assert values(result)
    assert any("not kept" in event.text for event in events if isinstance(event, Warn))
