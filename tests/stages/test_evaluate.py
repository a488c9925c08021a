"""`sit evaluate` end to end on small real artefacts, with extractors that need no download."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.encode.stage import encode
from sitcli.commands.evaluate.stage import evaluate, plan
from sitcli.errors import SitError, UsageError
from sitcli.events import Progress, Warn
from sitcli.features.statistics import save_statistics
from sitcli.metrics.moments import Moments, gaussian_of
from sitcli.metrics.table import METRICS
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.evaluate import EvaluateSettings
from tests.tiny import inception_file, write_folder, write_samples


def finish(stage):
    """All events of a stage, and its result."""
    events = []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            return events, end.value


def pixels(num, seed, side=8, shift=0):
    """Smooth pictures, so that their averages differ."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (num, 1, 1, 3)) + rng.integers(0, 40, (num, side, side, 3)) + shift
    return base.astype(np.uint8)


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A class folder, its latent store and a sample set that names the store."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("cat", 1), ("dog", 2)):
        write_folder(tmp_path / "images" / name, pixels(12, seed))
    settings = EncodeSettings(
        source=tmp_path / "images",
        out=tmp_path / "out.h5",
        vae="pixels",
        image_size=8,
        device="cpu",
        workers=0,
    )
    finish(encode(settings))
    write_samples(
        tmp_path / "samples" / "a",
        pixels(20, 3),
        store=str(tmp_path / "out.h5"),
        checkpoint="runs/a/step-0000010",
        mode="sde",
        solver="heun",
        wt="kl",
        cfg_scale=1.0,
        num=20,
    )
    return tmp_path


def pixel_settings(**more):
    return EvaluateSettings(features="pixels", device="cpu", **more)


def first_done(events):
    """Images that were done already when the stage began to count."""
    return next(event.done for event in events if isinstance(event, Progress))


def values(result):
    return {figure["metric"]: figure["value"] for figure in result.data["figures"]}


def test_the_newest_samples_are_compared_with_the_stores_images(pipeline):
    """Catches a default that does not find its inputs, a figure without its provenance or floor,
    and progress whose total is not what is done."""
    events, result = finish(evaluate(pixel_settings(kid=True, fid=True, prc=True)))
    document = json.loads((pipeline / "samples/a/metrics.json").read_text())
    assert result.path.resolve() == pipeline / "samples/a/metrics.json"
    names = ["FD[pixels]", "KD[pixels]", "precision[pixels]", "recall[pixels]"]
    assert [f["metric"] for f in document["figures"]] == names
    assert document["samples"]["sampler"]["solver"] == "heun"
    for figure in document["figures"]:
        assert figure["num_samples"] == 20
        assert figure["floor"] is not None
        assert figure["reference"]["num"] == 24
        assert figure["reference"]["num_floor"] == [12, 12]
        assert len(figure["reference"]["hash"]) == 64
        assert figure["features"] == {"name": "pixels", "weights_sha256": None, "official": False}
    done = [event for event in events if isinstance(event, Progress)]
    assert {event.total for event in done} == {44}
    assert done[-1].done == 44
    warnings = " ".join(event.text for event in events if isinstance(event, Warn))
    assert "not FID" in warnings
    assert "20 samples are fewer than 10,000" in warnings
    # Plain `sit sample` would draw from another checkpoint, with another sampler.
    again = "sit sample runs/a/step-0000010 --num 10000 --sde --solver heun --wt kl"
    assert result.next == again


def test_the_frechet_distance_is_that_of_the_images(pipeline):
    """Catches wrong rows, a wrong crop, or features of one side used for the other: the figure
    recomputed from the pixels with numpy alone."""
    _, result = finish(evaluate(pixel_settings()))
    fake = pixels(20, 3).transpose(0, 3, 1, 2).reshape(20, -1) / 255
    real = np.concatenate([pixels(12, 1), pixels(12, 2)]).transpose(0, 3, 1, 2)
    real = real.reshape(24, -1) / 255
    first, second = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (fake, real))
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    shift = np.square(fake.mean(0) - real.mean(0)).sum()
    expected = shift + np.square(first).sum() + np.square(second).sum() - 2 * cross
    assert values(result)["FD[pixels]"] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_extracted_twice(pipeline):
    """Catches kept features that are not used, and the figures changing because of them."""
    _, first = finish(evaluate(pixel_settings(fid=True, kid=True)))
    kept = list((pipeline / "out.stats").iterdir())
    assert sorted(path.suffix for path in kept) == [".features", ".npz"]
    shutil.rmtree(pipeline / "samples/a/stats")
    events, second = finish(evaluate(pixel_settings(fid=True)))
    assert {event.total for event in events if isinstance(event, Progress)} == {20}
    assert values(second)["FD[pixels]"] == values(first)["FD[pixels]"]
    events, third = finish(evaluate(pixel_settings(kid=True)))
    assert first_done(events) == 24
    assert values(third)["KD[pixels]"] == values(first)["KD[pixels]"]
    document = json.loads((pipeline / "samples/a/metrics.json").read_text())
    assert sorted(f["metric"] for f in document["figures"]) == ["FD[pixels]", "KD[pixels]"]


def test_an_interrupted_evaluation_goes_on_with_the_same_figures(pipeline, monkeypatch):
    """Catches rows flagged before they are written, or written to the wrong place on resuming."""
    from sitcli.features import collect as extraction

    monkeypatch.setattr(extraction, "BLOCK", 4)
    _, expected = finish(evaluate(pixel_settings(fid=True, kid=True)))
    shutil.rmtree(pipeline / "out.stats")
    shutil.rmtree(pipeline / "samples/a/stats")
    stage = evaluate(pixel_settings(fid=True, kid=True, batch_size=3))
    for event in stage:
        if isinstance(event, Progress) and event.done >= 15:
            break
    stage.close()
    events, result = finish(evaluate(pixel_settings(fid=True, kid=True)))
    assert 0 < first_done(events) < 24
    assert values(result) == values(expected)


def test_damaged_leftovers_are_made_again(pipeline):
    """Catches a half-written statistics or feature file that stops every later evaluation."""
    _, expected = finish(evaluate(pixel_settings(fid=True, kid=True)))
    for path in [*(pipeline / "out.stats").iterdir(), pipeline / "samples/a/metrics.json"]:
        path.write_bytes(path.read_bytes()[:100])
    events, result = finish(evaluate(pixel_settings(fid=True, kid=True)))
    assert any("made again" in event.text for event in events if isinstance(event, Warn))
    assert values(result) == values(expected)


def test_more_images_than_can_be_kept_give_the_same_distance(pipeline, monkeypatch):
    """Catches the streaming path differing from the kept one, and a metric that needs features
    being tried without them."""
    from sitcli.features import collect as extraction

    _, expected = finish(evaluate(pixel_settings()))
    shutil.rmtree(pipeline / "out.stats")
    monkeypatch.setattr(extraction, "KEEP_BYTES", 4 * 192 * 20)
    _, result = finish(evaluate(pixel_settings()))
    kept = {"".join(path.suffixes[-3:]) for path in (pipeline / "out.stats").iterdir()}
    assert kept == {".npz", ".sums.0.npz"}
    assert values(result)["FD[pixels]"] == pytest.approx(values(expected)["FD[pixels]"], rel=1e-9)
    with pytest.raises(UsageError, match="at most 20 images"):
        finish(evaluate(pixel_settings(kid=True)))


@pytest.mark.parametrize("kind", ["folder", "npz", "store", "samples"])
def test_every_kind_of_reference_gives_the_same_figure(pipeline, kind):
    """Catches a kind whose images are read in another layout, size or order."""
    _, expected = finish(evaluate(pixel_settings()))
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
    _, result = finish(evaluate(pixel_settings(reference=path)))
    assert values(result) == pytest.approx(values(expected), rel=1e-9)


def test_several_stores_are_one_reference(pipeline):
    """Fault: samples of a run on several stores compared with the images of the first alone."""
    _, expected = finish(evaluate(pixel_settings(samples=[pipeline / "samples/a"])))
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
        finish(encode(settings))
    meta = dict(
        store=stores[0], stores=stores, checkpoint="runs/a/step-0000010", mode="ode", cfg_scale=1.0
    )
    write_samples(pipeline / "samples" / "b", pixels(20, 3), **meta)
    _, result = finish(evaluate(pixel_settings(samples=[pipeline / "samples/b"])))
    assert values(result) == pytest.approx(values(expected), rel=1e-9)
    assert result.data["figures"][0]["reference"]["num"] == 24
    assert (pipeline / "cat+dog.stats").is_dir()
    os.remove(stores[1])
    with pytest.raises(SitError, match=r"dog\.h5, is not there any more"):
        finish(evaluate(pixel_settings(samples=[pipeline / "samples/b"])))


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_other_samples_get_their_figures_beside_them(pipeline, kind):
    """Catches metrics.json among the pictures of a folder, where it would be an image's sibling."""
    images = pixels(20, 3)
    if kind == "folder":
        path = write_folder(pipeline / "drawn", images)
    else:
        path = pipeline / "drawn.npz"
        np.savez(path, arr_0=images)
    with pytest.raises(UsageError) as caught:
        finish(evaluate(pixel_settings(samples=[path])))
    assert "--reference" in caught.value.hint
    _, result = finish(evaluate(pixel_settings(samples=[path], reference=pipeline / "out.h5")))
    assert result.path == pipeline / "drawn.metrics.json"
    assert result.path.exists()


def test_statistics_alone_give_the_distance_but_no_floor(pipeline):
    """Catches a floor made up for an npz without images, statistics of another extractor, and
    metrics that need images."""
    images = np.concatenate([pixels(12, 1), pixels(12, 2)]).transpose(0, 3, 1, 2)
    total = Moments(192)
    total.add(images.reshape(24, -1) / 255)
    path = pipeline / "s.npz"
    save_statistics(path, gaussian_of(total), features="pixels")
    _, expected = finish(evaluate(pixel_settings()))
    events, result = finish(evaluate(pixel_settings(reference=path)))
    assert values(result) == pytest.approx(values(expected), rel=1e-6)
    assert result.data["figures"][0]["floor"] is None
    assert any("no floor" in event.text for event in events if isinstance(event, Warn))
    with pytest.raises(UsageError, match="statistics only"):
        finish(evaluate(pixel_settings(reference=path, kid=True)))
    save_statistics(path, gaussian_of(total), features="inception:6726825d")
    with pytest.raises(SitError, match="inception:6726825d"):
        finish(evaluate(pixel_settings(reference=path)))


def test_a_reference_that_moved_or_lost_images_is_named(pipeline):
    """Catches statistics of what is left of a reference."""
    os.remove(pipeline / "images/cat/003.png")
    with pytest.raises(SitError, match=r"cat/003\.png") as caught:
        finish(evaluate(pixel_settings()))
    assert "--reference" in caught.value.hint
    (pipeline / "images").rename(pipeline / "elsewhere")
    with pytest.raises(SitError, match="images") as caught:
        finish(evaluate(pixel_settings()))
    assert "--reference" in caught.value.hint
    (pipeline / "out.h5").unlink()
    with pytest.raises(SitError, match=r"out\.h5") as caught:
        finish(evaluate(pixel_settings()))
    assert "--reference" in caught.value.hint
    assert not (pipeline / "samples/a/metrics.json").exists()


def test_what_cannot_be_compared_is_refused(pipeline):
    """Catches figures from one image, of unequal sizes, or of more images than there are."""
    small = write_samples(pipeline / "samples/small", pixels(20, 1, side=4))
    one = write_samples(pipeline / "samples/one", pixels(1, 1))
    store = pipeline / "out.h5"
    cases = [
        (dict(samples=[one], reference=store), "1 image"),
        (dict(samples=[small], reference=store), "4x4"),
        (dict(samples=[store]), "latent store"),
        (dict(samples=[pipeline / "samples/a"], reference_num=25), "24 images"),
        (dict(isc=True), "--isc"),
    ]
    for more, words in cases:
        with pytest.raises(SitError, match=words):
            finish(evaluate(pixel_settings(**more)))


def test_the_floor_and_kid_follow_the_seed(pipeline):
    """Catches halves or subsets that are drawn from a global generator."""
    figures = [finish(evaluate(pixel_settings(seed=s)))[1].data["figures"][0] for s in (0, 1, 0)]
    assert figures[0]["floor"] == figures[2]["floor"] != figures[1]["floor"]
    assert figures[0]["value"] == pytest.approx(figures[1]["value"], rel=1e-9)


def test_a_plan_writes_nothing(pipeline):
    """Catches a dry run that extracts or makes folders."""
    before = sorted(pipeline.rglob("*"))
    result = plan(pixel_settings(fid=True, reference_num=10))
    assert result.data["reference"]["num"] == 10
    assert result.data["out"][0].endswith("samples/a/metrics.json")
    assert sorted(pipeline.rglob("*")) == before


def test_an_unwritable_reference_folder_only_costs_the_keeping(pipeline):
    """Catches an evaluation that fails because the data set is read-only."""
    (pipeline / "out.stats").write_text("in the way")
    events, result = finish(evaluate(pixel_settings()))
    assert values(result)
    assert any("not kept" in event.text for event in events if isinstance(event, Warn))


class Mean(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def test_a_torchscript_extractor_labels_its_figures(pipeline):
    """Catches a user's features reported as FID or without their hash."""
    torch.jit.save(torch.jit.script(Mean()), pipeline / "mean.pt")
    settings = EvaluateSettings(features=str(pipeline / "mean.pt"), device="cpu")
    _, result = finish(evaluate(settings))
    (figure,) = result.data["figures"]
    digest = figure["features"]["weights_sha256"]
    assert figure["metric"] == f"FD[mean.pt:{digest[:8]}]"
    assert len(digest) == 64


def test_without_samples_that_is_what_is_said(tmp_path, monkeypatch):
    """A hunt for Inception's weights would end where there is nothing to measure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(SitError, match="no sample set"):
        finish(evaluate(EvaluateSettings(device="cpu")))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return inception_file(tmp_path_factory.mktemp("weights") / "random.pth")


def test_all_metrics_take_one_pass_and_are_adms(pipeline, inception):
    """Faults: a pass for each metric; an sFID of other channels or laid out NCHW, which a distance
    alone would not show; an npz reference whose mu_s is not used; the word FID for other weights.
    """
    reference = pipeline / "ref.npz"
    drawn, images = pixels(9, 3), pixels(8, 1)
    np.savez(reference, arr_0=images)
    samples = pipeline / "drawn.npz"
    np.savez(samples, arr_0=drawn)
    metrics = dict.fromkeys(("sfid", "isc", "kid", "prc", "dc"), True)
    settings = EvaluateSettings(
        samples=[samples],
        **metrics,
        features_weights=inception,
        reference=reference,
        device="cpu",
        batch_size=7,
    )
    events, result = finish(evaluate(settings))
    tag = result.data["figures"][0]["features"]["weights_sha256"][:8]
    names = ["sFD", "IS", "KD", "precision", "recall", "density", "coverage"]
    assert list(values(result)) == [f"{name}[inception:{tag}]" for name in names]
    assert {event.total for event in events if isinstance(event, Progress)} == {17}
    floors = [figure["floor"] is None for figure in result.data["figures"]]
    assert floors == [False] * 3 + [False, False] + [True, True]  # density needs 6 a side

    # The same from the network itself, as ADM describes it: channels 0 to 6 of mixed_6, NHWC.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "x", ["2048"], feature_extractor_weights_path=str(inception)
    )
    maps = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, output: maps.append(output))
    with torch.inference_mode():
        for batch in (drawn, images):
            network(torch.from_numpy(batch).permute(0, 3, 1, 2))
    fake, real = (m[:, :7].permute(0, 2, 3, 1).reshape(len(m), 2023).numpy() for m in maps)
    first, second = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (fake.astype(float), real))
    mean = real.mean(0, dtype=float)
    exact = np.square(fake.mean(0, dtype=float) - mean).sum() + np.square(first).sum()
    exact += np.square(second).sum() - 2 * np.linalg.svd(first @ second.T, compute_uv=False).sum()
    assert values(result)[f"sFD[inception:{tag}]"] == pytest.approx(exact, rel=1e-4)

    other = pipeline / "adm.npz"
    np.savez(other, arr_0=images, mu=np.zeros(2048), sigma=np.eye(2048), mu_s=mean + 1,
             sigma_s=second.T @ second)  # fmt: skip
    _, shifted = finish(
        evaluate(
            EvaluateSettings(
                samples=[samples],
                sfid=True,
                features_weights=inception,
                reference=other,
                device="cpu",
            )
        )
    )
    (figure,) = shifted.data["figures"]
    cross = 2 * (fake.mean(0, dtype=float) - mean) @ np.ones(2023)
    assert figure["value"] == pytest.approx(exact + 2023 - cross, rel=1e-4)
    assert figure["recipe"]["statistics"] == "the file's mu_s and sigma_s"


def test_several_sets_stand_in_one_table(pipeline):
    """Fault: figures under the wrong set, or a reference extracted for each of them."""
    for name, seed in (("b", 4), ("c", 5)):
        write_samples(pipeline / "samples" / name, pixels(20, seed, shift=10 * seed))
    paths = [pipeline / "samples" / name for name in "abc"]
    reference = pipeline / "out.h5"
    events, result = finish(
        evaluate(pixel_settings(samples=paths, fid=True, kid=True, reference=reference))
    )
    assert {event.total for event in events if isinstance(event, Progress)} == {24 + 3 * 20}
    (table,) = result.tables
    assert table.header == ["samples", "N", "FD[pixels]", "KD[pixels]"]
    assert [row[0] for row in table.rows] == [*map(str, paths), "floor"]
    for path, each in zip(paths, result.data["sets"], strict=True):
        _, alone = finish(
            evaluate(pixel_settings(samples=[path], fid=True, kid=True, reference=reference))
        )
        figures = json.loads((path / "metrics.json").read_text())["figures"]
        assert [f["value"] for f in figures] == [f["value"] for f in each["figures"]]
        assert [f["value"] for f in figures] == [f["value"] for f in alone.data["figures"]]
    small = write_samples(pipeline / "samples/small", pixels(20, 1, side=4))
    for wrong, words in (([paths[0], small], "one size"), ([paths[0], paths[0]], "named twice")):
        with pytest.raises(UsageError, match=words):
            finish(evaluate(pixel_settings(samples=wrong, reference=reference)))
    with pytest.raises(UsageError, match="different images"):
        finish(evaluate(pixel_settings(samples=paths)))


def test_an_interval_holds_the_figure_and_follows_the_seed(pipeline):
    """Fault: quantiles of resamples, which for a Frechet distance lie above the figure itself."""
    settings = pixel_settings(fid=True, kid=True, prc=True, dc=True, bootstrap=12)
    _, result = finish(evaluate(settings))
    for figure in result.data["figures"]:
        if figure["metric"].split("[")[0] in ("precision", "recall", "coverage"):
            assert figure["interval"] is None
            continue
        low, high = figure["interval"]["low"], figure["interval"]["high"]
        assert low < figure["value"] < high
        assert low + high == pytest.approx(2 * figure["value"])
    assert "[" in result.tables[0].rows[0][1]
    _, again = finish(evaluate(settings))
    assert again.data["figures"] == result.data["figures"]


def test_sums_of_a_large_set_go_on_where_they_were(pipeline, monkeypatch):
    """Fault: chunks counted twice or lost when features are too many to keep and a run is cut."""
    from sitcli.features import collect as extraction

    _, expected = finish(evaluate(pixel_settings()))
    shutil.rmtree(pipeline / "out.stats")
    monkeypatch.setattr(extraction, "KEEP_BYTES", 1)
    monkeypatch.setattr(extraction, "CHUNK", 5)
    monkeypatch.setattr(extraction, "SAVE_SECONDS", 0.0)
    stage = evaluate(pixel_settings(batch_size=3))
    for event in stage:
        if isinstance(event, Progress) and event.done >= 13:
            break
    stage.close()
    (pipeline / "out.stats").joinpath("x.sums.9.npz").write_bytes(b"damaged")
    events, result = finish(evaluate(pixel_settings()))
    assert first_done(events) == 10
    assert values(result)["FD[pixels]"] == pytest.approx(values(expected)["FD[pixels]"], rel=1e-9)
    events, result = finish(evaluate(pixel_settings()))
    assert first_done(events) == 20  # of the samples; the reference's statistics are kept


def test_every_metric_has_its_flag():
    """Fault: a row of METRICS that no option asks for."""
    fields = {field.name for field in dataclasses.fields(EvaluateSettings)}
    assert set(METRICS) <= fields
