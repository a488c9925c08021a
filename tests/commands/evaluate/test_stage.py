"""`sit evaluate` end to end on small real artefacts, with extractors that need no download."""

import json

import numpy as np
import pytest
import torch

from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import SitError
from sitcli.events import Progress, Warn
from sitcli.settings.evaluate import EvaluateSettings
from tests.commands.evaluate.measuring import events_and_result, pixel_settings, pixels, values
from tests.tiny import inception_file, write_samples


def test_the_newest_samples_are_compared_with_the_stores_images(pipeline):
    """Catches: a default that does not find its inputs, a figure without its provenance,
    and progress whose total is not what is done."""
    events, result = events_and_result(evaluate(pixel_settings(kid=True, fid=True, prc=True)))
    document = json.loads((pipeline / "samples/a/metrics.json").read_text())
    assert result.path.resolve() == pipeline / "samples/a/metrics.json"
    names = ["FD[pixels]", "KD[pixels]", "precision[pixels]", "recall[pixels]"]
    assert [f["metric"] for f in document["figures"]] == names
    assert document["samples"]["sampler"]["solver"] == "heun"
    for figure in document["figures"]:
        assert figure["num_samples"] == 20
        assert figure["reference"]["num"] == 24
        assert "real" in figure
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
    """Catches: wrong rows, a wrong crop, or features of one side used for the other: the figure
    recomputed from the pixels with numpy alone."""
    _, result = events_and_result(evaluate(pixel_settings()))
    fake = pixels(20, 3).transpose(0, 3, 1, 2).reshape(20, -1) / 255
    real = np.concatenate([pixels(12, 1), pixels(12, 2)]).transpose(0, 3, 1, 2)
    real = real.reshape(24, -1) / 255
    first, second = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (fake, real))
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    shift = np.square(fake.mean(0) - real.mean(0)).sum()
    expected = shift + np.square(first).sum() + np.square(second).sum() - 2 * cross
    assert values(result)["FD[pixels]"] == pytest.approx(expected, rel=1e-6)


class Mean(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def test_a_torchscript_extractor_labels_its_figures(pipeline):
    """Catches: a user's features reported as FID or without their hash."""
    torch.jit.save(torch.jit.script(Mean()), pipeline / "mean.pt")
    settings = EvaluateSettings(features=str(pipeline / "mean.pt"), device="cpu")
    _, result = events_and_result(evaluate(settings))
    (figure,) = result.data["figures"]
    digest = figure["features"]["weights_sha256"]
    assert figure["metric"] == f"FD[mean.pt:{digest[:8]}]"
    assert len(digest) == 64


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return inception_file(tmp_path_factory.mktemp("weights") / "random.pth")


def test_all_metrics_take_one_pass_and_are_adms(pipeline, inception):
    """Catches: a pass for each metric; an sFID of other channels or laid out NCHW, which a distance
    alone would not show; an npz reference whose mu_s is not used; the word FID for other
    weights."""
    reference = pipeline / "ref.npz"
    drawn, images = pixels(6, 3), pixels(13, 1)
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
    events, result = events_and_result(evaluate(settings))
    tag = result.data["figures"][0]["features"]["weights_sha256"][:8]
    names = ["sFD", "IS", "KD", "precision", "recall", "density", "coverage"]
    assert list(values(result)) == [f"{name}[inception:{tag}]" for name in names]
    assert {event.total for event in events if isinstance(event, Progress)} == {19}
    real = [figure["real"] and figure["real"]["numbers"] for figure in result.data["figures"]]
    assert real == [[6, 7], [6], *[[6, 7]] * 5]  # the Inception Score compares with nothing
    floors = [figure["floor"] is not None for figure in result.data["figures"]]
    assert floors == [True, False, True, False, False, False, False]

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
    _, shifted = events_and_result(
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


def test_an_interval_holds_the_figure_and_follows_the_seed(pipeline):
    """Catches: quantiles of parts, which for a Frechet distance lie above the figure itself; an
    interval of recall, whose balls change with the samples; and shares above 1."""
    settings = pixel_settings(fid=True, kid=True, prc=True, dc=True, bootstrap=12)
    _, result = events_and_result(evaluate(settings))
    methods = {}
    for figure in result.data["figures"]:
        name, interval = figure["metric"].split("[")[0], figure["interval"]
        methods[name] = interval and (interval["method"], interval["parts"])
        if interval is None:
            continue
        low, high = interval["low"], interval["high"]
        assert low <= figure["value"] <= high
        assert low < high
        if name in ("precision", "coverage"):
            assert 0 <= low < high <= 1
        else:
            assert low + high == pytest.approx(2 * figure["value"])
    formula, parts = ("formula", None), ("halves and quarters", 20)
    assert methods == dict(
        FD=parts, KD=formula, precision=formula, recall=None, density=formula, coverage=parts
    )
    assert "[" in result.tables[0].rows[0][1]
    assert "recall: no interval is known" in result.summary["[low, high]"]
    _, again = events_and_result(evaluate(settings))
    assert again.data["figures"] == result.data["figures"]
    few = write_samples(pipeline / "samples/few", pixels(7, 3))
    with pytest.raises(SitError, match=r"--bootstrap needs 8 samples: .*few has 7"):
        events_and_result(
            evaluate(pixel_settings(samples=[few], reference=pipeline / "out.h5", bootstrap=12))
        )
