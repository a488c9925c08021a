"""The trainer's arguments in a file, compared with its tensors and with the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.encode.stage import encode
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.settings.encode import EncodeSettings
from tests.tiny import finish, pictures, write_folder
from tests.weights.official_files import CONFIG, bring, official, save, trainer

# As the trainers of SiT, fast-DiT and REPA save them, for the tensors of CONFIG.
SIT = dict(
    model="SiT-Mi/2", image_size=64, num_classes=5, vae="ema", path_type="Linear",
    prediction="velocity", loss_weight=None, sample_eps=None, train_eps=None, cfg_scale=4.0,
    global_batch_size=256, global_seed=0, epochs=1400, data_path="/data", log_every=100,
)  # fmt: skip
DIT = dict(
    model="DiT-Mi/2", image_size=64, num_classes=5, global_batch_size=256, feature_path="features"
)
REPA = dict(
    model="SiT-Mi/2", resolution=64, num_classes=5, path_type="linear", prediction="v",
    weighting="uniform", enc_type="dinov2-vit-b", proj_coeff=0.5, encoder_depth=2, qk_norm=False,
    fused_attn=True, cfg_prob=0.2, batch_size=256,
)  # fmt: skip


@pytest.mark.parametrize(
    ("args", "lineage", "process"),
    [
        (SIT, "official-sit", Flow()),
        (DIT, "official-dit", Diffusion()),
        (REPA, "repa", Flow()),
    ],
    ids=["sit", "dit", "repa"],
)
def test_arguments_that_fit_say_nothing(tmp_path: Path, args, lineage, process):
    """Catches: a true file that is refused for what its trainer was told."""
    run = bring(save(tmp_path / "x.pt", trainer(**args)), tmp_path / "run")
    assert (run.meta["lineage"], run.process) == (lineage, process)
    assert run.meta["label_dropout"] == args.get("cfg_prob", 0.1)


@pytest.mark.parametrize(
    ("args", "change", "stated", "held"),
    [
        (SIT, dict(model="DiT-Mi/2"), "model DiT-Mi/2", "also path_type Linear, which only a SiT"),
        (REPA, dict(model="DiT-Mi/2"), "model DiT-Mi/2", "also path_type linear, which only a SiT"),
        (DIT, dict(model="SiT-Mi/2"), "model SiT-Mi/2", "official-dit weights are a DiT's"),
        (SIT, dict(model="SiT-B/2"), "model SiT-B/2, 12 blocks of width 768 and patch 2",
         "its tensors are 4 blocks of width 128 and patch 2"),
        (DIT, dict(model="DiT-Mi/4"), "model DiT-Mi/4", "its tensors are 4 blocks"),
        (DIT, dict(model="DiT-Tiny/4"), "model DiT-Tiny/4", "patch 2"),
        (SIT, dict(num_classes=1000), "num_classes 1000", "it is 5: y_embedder has 6 rows"),
        (SIT, dict(image_size=256), "image_size 256", "its pos_embed the images have 64 x 64"),
        (REPA, dict(resolution=512), "resolution 512", "its pos_embed the images have 64 x 64"),
        (REPA, dict(qk_norm=True), "qk_norm True", "it is False"),
        (SIT, dict(in_channels=16), "in_channels 16", "it is 4"),
        (SIT, dict(learn_sigma=False), "learn_sigma False", "it is True"),
        (SIT, dict(depth=28), "depth 28", "it is 4"),
        (SIT, dict(hidden_size=64), "hidden_size 64", "it is 128"),
        (SIT, dict(patch_size=8), "patch_size 8", "it is 2"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_are_compared_with_the_tensors(tmp_path: Path, args, change, stated, held):
    """Catches: weights that are not those their trainer's arguments describe, and a size that is
    blamed on a --model that nobody gave."""
    file = save(tmp_path / "x.pt", trainer(**args | change))
    with pytest.raises(SitError) as failure:
        bring(file, tmp_path / "run")
    assert failure.value.message.startswith(f"the args in {file} say {stated}")
    assert held in failure.value.message
    assert "--model" not in failure.value.message
    assert not (tmp_path / "run").exists()
    more = dict(model="DiT-Mi/2") if args is DIT else dict(lineage="official-sit")
    assert bring(file, tmp_path / "run", ignore_args=True, **more).config == CONFIG


@pytest.mark.parametrize(
    ("args", "options", "stated"),
    [
        (SIT | dict(model="SiT-B/2"), dict(model="SiT-Mi/2"), "model SiT-B/2"),
        (SIT, dict(lineage="official-dit"), "model SiT-Mi/2"),
        (dict(path_type="Linear"), dict(lineage="official-dit"), "path_type Linear"),
        (DIT, dict(lineage="repa"), "model DiT-Mi/2"),
        (SIT, dict(interpolant="gvp"), "path_type Linear"),
        (REPA, dict(prediction="noise"), "prediction v"),
        (SIT | dict(num_heads=4), dict(heads=2), "num_heads 4"),
    ],
    ids=str,
)
def test_arguments_are_compared_with_the_command_line(tmp_path: Path, args, options, stated):
    """Catches: an option that silently wins over the file, or the reverse."""
    file = save(tmp_path / "x.pt", trainer(**args))
    (name, value), *_ = options.items()
    with pytest.raises(UsageError) as failure:
        bring(file, tmp_path / "run", **options)
    assert failure.value.message == f"--{name} {value}, but the args in {file} say {stated}"
    assert f"remove --{name}" in failure.value.hint
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_is_compared(tmp_path: Path):
    """Catches: another autoencoder's decoder for Stable Diffusion's latents."""
    images = write_folder(tmp_path / "images", pictures(12)[0])
    store = tmp_path / "pca.h5"
    settings = dict(vae="patch-pca", image_size=8, pca_patch=2, pca_channels=4, device="cpu")
    finish(encode(EncodeSettings(source=images, out=store, workers=0, **settings)))
    file = save(tmp_path / "x.pt", trainer(**SIT | dict(image_size=16)))
    with pytest.raises(UsageError, match=r"--vae .*pca\.h5, but the args .* say vae ema"):
        bring(file, tmp_path / "run", vae=str(store))
    # With no word on the autoencoder, the size that follows from it must be the images'.
    file = save(tmp_path / "y.pt", trainer(**SIT | dict(vae="own")))
    with pytest.raises(SitError, match=r"image_size 64, but by its pos_embed and --vae .* 16 x 16"):
        bring(file, tmp_path / "run", vae=str(store))


def test_positions_that_are_missing_follow_from_the_arguments(tmp_path: Path):
    """Catches: a question whose answer is in the file, and an answer that contradicts it."""
    content = trainer(**SIT)
    for state in (content["model"], content["ema"]):
        del state["pos_embed"]
    file = save(tmp_path / "x.pt", content)
    assert bring(file, tmp_path / "a").config == CONFIG
    with pytest.raises(UsageError, match=r"--image-size 128, but the args .* images of 64 pixels"):
        bring(file, tmp_path / "b", image_size="128")
    # Recomputing the positions for another size is no contradiction.
    whole = save(tmp_path / "y.pt", trainer(**SIT))
    assert bring(whole, tmp_path / "c", image_size="128").config.input_size == 16


def test_what_sit_does_not_know_can_be_said(tmp_path: Path):
    """Catches: a hint to options that are never looked at."""
    file = save(tmp_path / "x.pt", trainer(**SIT | dict(path_type="Spiral", prediction="eps")))
    with pytest.raises(SitError, match="path_type Spiral, which sit does not know") as failure:
        bring(file, tmp_path / "run")
    assert failure.value.hint == "say what it is with --interpolant"
    with pytest.raises(SitError, match="prediction eps") as failure:
        bring(file, tmp_path / "run", interpolant="gvp")
    assert failure.value.hint == "say what it is with --prediction"
    run = bring(file, tmp_path / "run", interpolant="gvp", prediction="noise")
    assert run.process == Flow(interpolant="gvp", prediction="noise")


def test_other_arguments_say_nothing(tmp_path: Path):
    """Catches: a traceback for a value of another type than the trainers'."""
    odd = dict(model=3, num_classes="many", image_size=[64], vae=None, path_type="linear")
    run = bring(save(tmp_path / "x.pt", trainer(**odd)), tmp_path / "run")
    assert run.config == CONFIG
    plain = save(tmp_path / "SiT-y.pt", official())
    with pytest.raises(UsageError, match="holds no arguments of a trainer"):
        bring(plain, tmp_path / "b", ignore_args=True)
