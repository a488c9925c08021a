"""Weights imported and exported: bit for bit, and drawing the same images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli import names
from sitcli.commands.evaluate.likelihood import likelihood
from sitcli.commands.inspect.stage import inspect
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.meta import written_fields
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.tools import InspectSettings
from sitcli.storage.tensors import read_tensors, write_tensors
from tests.tiny import finish, make_run, make_store, random_network, write_meta
from tests.weights.official_files import CONFIG, bring, draw_latents, equal, official, save, take

CPU = torch.device("cpu")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(4, 4, 8, 8)).astype("f4"))
    return tmp_path / "noise.npy"


@pytest.mark.parametrize(
    ("file", "format"),
    [("SiT-Mi-2-64x64.pt", "official-sit"), ("DiT-Mi-2-64x64.pt", "official-dit")],
)
def test_official_weights_come_back_bit_for_bit(tmp_path: Path, file: str, format: str) -> None:
    """Catches: any tensor touched, lost, renamed or reordered between import and export."""
    state = official()
    checkpoint = bring(save(tmp_path / file, state), tmp_path / "run")
    assert checkpoint.config == CONFIG
    assert checkpoint.kinds == ["ema"]
    assert checkpoint.meta["lineage"] == format
    assert checkpoint.meta["guided_channels"] == "3"
    reverse = format == "official-sit"
    assert checkpoint.meta["time_convention"] == ("reversed" if reverse else "paper")
    assert isinstance(checkpoint.process, Flow if reverse else Diffusion)
    back = torch.load(take(tmp_path / "run", tmp_path / "back.pt", format), weights_only=True)
    assert list(back) == list(state)
    assert equal(back, state)
    told = finish(inspect(InspectSettings(path=tmp_path / "run", verify=True, device="cpu")))
    assert told.data["verified"]


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
@pytest.mark.parametrize("file", ["SiT-Mi-2-64x64.pt", "DiT-Mi-2-64x64.pt"])
def test_everything_returns_from_our_own_formats(tmp_path: Path, file: str, layout: str) -> None:
    """Catches: a bit or a fact that is lost on the way, and with it what the samples would be."""
    first = bring(save(tmp_path / file, official()), tmp_path / "a")
    out = tmp_path / ("x.safetensors" if layout == "safetensors" else "x")
    second = bring(take(tmp_path / "a", out, layout), tmp_path / "b")
    assert equal(first.weights("ema"), second.weights("ema"))
    forget = dict(weights_source=None, sit_version=None, checksum=None)
    assert first.meta | forget == second.meta | forget
    if layout == "safetensors":
        plain = read_tensors(out)
        assert equal(plain, official())


NO_FLOW, NO_CHAIN = "trained with SiT's flow", "trained with DiT's diffusion"
NOT_SQUARE, OTHER_BLOCKS = "latents are not square", "layout has adaln-zero blocks"


def only(**refused: str) -> dict[str, str]:
    """Why a layout refuses, for those that do."""
    return {name.replace("_", "-"): why for name, why in refused.items()}


def others(why: str) -> dict[str, str]:
    """The reason for which every layout but safetensors refuses."""
    return dict.fromkeys(("official-sit", "official-dit", "diffusers"), why)


# A process, changes to the network, and the layouts that cannot hold such a run.
KINDS = {
    "velocity": (Flow(), {}, only(official_dit=NO_FLOW)),
    "score-gvp": (Flow(interpolant="gvp", prediction="score"), {}, only(official_dit=NO_FLOW)),
    "noise": (Flow(prediction="noise"), {}, only(official_dit=NO_FLOW)),
    "noise-vp": (Flow(interpolant="vp", prediction="noise"), {}, only(official_dit=NO_FLOW)),
    "data": (Flow(prediction="data"), {},
             only(official_sit="lacks data prediction", official_dit=NO_FLOW)),
    "learned-sigma": (Diffusion(), {}, only(official_sit=NO_CHAIN)),
    "fixed-sigma": (Diffusion(variance="fixed-large"), {},
                    only(official_sit=NO_CHAIN, official_dit="needs variance learned-range")),
    "cosine": (Diffusion(betas="cosine"), {},
               only(official_sit=NO_CHAIN, official_dit="needs betas linear")),
    "unconditional": (Flow(), dict(num_classes=0),
                      only(official_dit=NO_FLOW, diffusers="needs classes")),
    "second-head": (Flow(), dict(aux_block=1), only(official_dit=NO_FLOW)),
    "projector": (Flow(), dict(align_block=1, align_width=5), only(official_dit=NO_FLOW)),
    "qk-norm": (Flow(), dict(qk_norm=True), others("no place for QK-norm")),
    "qk-layer-norm": (Flow(), dict(qk_norm=True, qk_kind="layer"), others("for QK-LayerNorm")),
    "lightning": (Flow(), dict(rope=True, mlp="swiglu", norm="rms"),
                  others("no place for SwiGLU, RMSNorm, RoPE")),
    "in-context": (Flow(), dict(block="in-context"), others(OTHER_BLOCKS)),
    "not-square": (Flow(), dict(input_width=4), others(NOT_SQUARE)),
}  # fmt: skip


def run_of_kind(folder: Path, process: Flow, changes: dict) -> Path:
    """A run of random weights with this process and these changes to its network."""
    run = make_run(folder, process=process, classes=changes.get("num_classes") != 0)
    checkpoint = open_checkpoint(run)
    config = dataclasses.replace(checkpoint.config, **changes)
    for name in ("model", "ema"):
        network = random_network(config)
        write_tensors(checkpoint.path / f"{name}.safetensors", network.state_dict())
    meta = checkpoint.meta | {"transformer": written_fields(config)}
    if config.input_width:
        meta["latents"] |= dict(image_size=[config.input_size, config.input_width])
    write_meta(checkpoint.path / "meta.json", meta)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_every_export_draws_the_same_or_says_why_not(tmp_path: Path, kind: str) -> None:
    """Catches: a layout that loses something without saying so, or loses a bit of what it keeps."""
    process, changes, refused = KINDS[kind]
    run = run_of_kind(tmp_path, process, changes)
    expected = draw_latents(run, tmp_path / "own.h5", num=2, steps=3)
    for layout in names.EXPORT_FORMATS:
        out = tmp_path / {"diffusers": "folder", "safetensors": "x.safetensors"}.get(layout, layout)
        out = out.with_suffix(out.suffix or (".pt" if layout != "diffusers" else ""))
        if layout in refused:
            with pytest.raises(UsageError, match=refused[layout]) as caught:
                take(run, out, layout)
            assert "--format safetensors" in caught.value.hint
            assert not out.exists()
            continue
        bring(take(run, out, layout), tmp_path / f"from-{layout}")
        drawn = draw_latents(tmp_path / f"from-{layout}", tmp_path / f"{layout}.h5", num=2, steps=3)
        np.testing.assert_array_equal(drawn, expected, err_msg=layout)


def test_a_run_of_ours_returns_with_its_autoencoder(tmp_path: Path) -> None:
    """Catches: a run that can be exported but not used again."""
    run = make_run(tmp_path, process=Flow(interpolant="gvp"))
    again = bring(take(run, tmp_path / "x.safetensors", "safetensors"), tmp_path / "again")
    assert again.step == 7
    options = dict(num=3, steps=4)
    np.testing.assert_array_equal(
        draw_latents(run, tmp_path / "1.h5", **options),
        draw_latents(tmp_path / "again", tmp_path / "2.h5", **options),
    )


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
def test_our_weights_run_in_the_official_convention(
    tmp_path: Path, prediction: str, noise: Path
) -> None:
    """Catches: a time that is not turned, or turned without its sign: our network of t and the
    exported one of 1 - t must say the same, and twice the channels are there as the official
    sampler at 256 builds them."""
    run = make_run(tmp_path, process=Flow(prediction=prediction))
    ours = open_checkpoint(run)
    state = torch.load(take(run, tmp_path / "x.pt", "official-sit"), weights_only=True)
    assert state["final_layer.linear.weight"].shape == (2 * 2 * 6, 32)
    config = dataclasses.replace(ours.config, out_channels=6)
    network = random_network(config)
    network.load_state_dict(state, strict=True)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for t in (0.0, 0.013, 0.4, 1.0):
        times = torch.full((4,), t)
        with torch.no_grad():
            expected = ours.network("ema", CPU)(x, times, y)
            found = network(x, 1 - times, y)
        sign = -1 if prediction == "velocity" else 1
        torch.testing.assert_close(sign * found[:, :3], expected, atol=3e-5, rtol=1e-4)
        assert not found[:, 3:].any()
    again = bring(
        tmp_path / "x.pt", tmp_path / "b", lineage="official-sit", vae="pixels", heads=2,
        prediction=prediction,
    )  # fmt: skip
    assert again.meta["time_convention"] == "reversed"
    # The official format has no place for the loss curve, which says where noise models begin.
    pair = [
        draw_latents(path, tmp_path / f"{i}.h5", num=3, steps=5, t_start=0.999)
        for i, path in enumerate((run, tmp_path / "b"))
    ]
    np.testing.assert_allclose(*pair, atol=2e-5 * np.abs(pair[0]).max())


def test_an_official_loop_draws_what_we_draw(tmp_path: Path, noise: Path) -> None:
    """Catches: any disagreement with the official sampler on its own weights: its Euler steps with
    guidance on three channels, from the same noise, written out."""
    weights = save(tmp_path / "SiT-Mi-2-64x64.pt", official())
    bring(weights, tmp_path / "run")
    ours = draw_latents(
        tmp_path / "run", tmp_path / "x.h5", noise=noise, solver="euler", steps=10, cfg_scale=2.0,
        classes="3,0",
    )  # fmt: skip
    network = random_network(CONFIG)
    network.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.from_numpy(np.load(noise))
    y = torch.tensor([3, 0, 3, 0, 5, 5, 5, 5])
    with torch.no_grad():
        for k in range(10):
            out = network(torch.cat([x, x]), torch.full((8,), k / 10), y)[:, :4]
            c, u = out.chunk(2)
            x = x + torch.cat([u[:, :3] + 2.0 * (c[:, :3] - u[:, :3]), c[:, 3:]], dim=1) / 10
    np.testing.assert_allclose(ours, x.numpy(), atol=5e-6)


def test_the_likelihood_of_imported_weights_needs_a_store(tmp_path: Path) -> None:
    """Catches: a traceback where the run knows no store, or a store of unseen weights refused."""
    state = official(dataclasses.replace(CONFIG, channels=3, out_channels=3))
    file = save(tmp_path / "SiT-Mi-2.pt", state)
    bring(file, tmp_path / "run", vae="pixels")
    options = dict(samples=[tmp_path / "run"], nll=True, num=2, steps=2, device="cpu")
    with pytest.raises(UsageError, match="imported weights") as caught:
        finish(likelihood(EvaluateSettings(**options)))
    assert "--reference" in caught.value.hint
    store = make_store(tmp_path / "tiny.h5").path
    told = finish(likelihood(EvaluateSettings(**options, reference=store)))
    assert all(np.isfinite(figure["value"]) for figure in told.data["figures"])
    meta = open_checkpoint(tmp_path / "run").path / "meta.json"
    facts = json.loads(meta.read_text())
    facts["latents"]["autoencoder"]["hash"] = None
    write_meta(meta, facts)
    finish(likelihood(EvaluateSettings(**options, reference=store)))


def test_training_does_not_go_on_from_imported_weights(tmp_path: Path) -> None:
    """Catches: a traceback, or moments made up, where the optimizer's state is missing."""
    from sitcli.commands.train.stage import train
    from sitcli.settings.train import TrainSettings

    run = make_run(tmp_path)
    take(run, tmp_path / "x.safetensors", "safetensors")
    bring(tmp_path / "x.safetensors", tmp_path / "runs" / "b")
    settings = TrainSettings(
        latents=[tmp_path / "tiny.h5"], out=tmp_path / "runs" / "b", device="cpu", steps=10
    )
    with pytest.raises(SitError, match="imported weights"):
        finish(train(settings))
