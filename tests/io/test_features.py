"""Feature extractors: what they give, what they are called, and files that are none."""

import numpy as np
import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.features.base import INCEPTION_HASH, Features
from sitcli.features.extractors import choose_features, load_extractor
from sitcli.features.inception import INCEPTION_FILE
from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.inception_score import inception_score
from sitcli.metrics.kid import kernel_distance
from sitcli.metrics.moments import gaussian_of
from sitcli.metrics.neighbours import precision_recall
from tests.tiny import inception_file, moments

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """The real network with random weights, as a file of the official one's form."""
    return inception_file(tmp_path_factory.mktemp("weights") / "random.pth")


def test_pixels_are_area_averages():
    """Catches a resize that samples instead of averaging, and sizes of features."""
    extract = load_extractor(choose_features("pixels", None), CPU).extract
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    features = extract(images.to(torch.uint8))["pool"]
    assert features.shape == (3, 768)
    expected = images[1, 2, 4:6, 10:12].double().mean() / 255
    assert features[1].reshape(3, 16, 16)[2, 2, 5] == pytest.approx(expected.item(), rel=1e-6)
    assert extract(torch.zeros(2, 3, 8, 12, dtype=torch.uint8))["pool"].shape == (2, 288)


def test_only_the_official_weights_give_figures_called_fid():
    """Catches a figure of other weights or of pixels that is called FID."""
    official = Features(name="inception", path=None, hash=INCEPTION_HASH + "0" * 56)
    other = Features(name="inception", path=None, hash="12345678" + "0" * 56)
    assert [official.label(m) for m in ("FID", "KID", "IS")] == ["FID", "KID", "IS"]
    assert other.label("FID") == "FD[inception:12345678]"
    assert other.label("precision") == "precision[inception:12345678]"
    assert choose_features("pixels", None).label("KID") == "KD[pixels]"


def test_missing_inception_weights_are_named_and_never_fetched(tmp_path, monkeypatch):
    """Catches a silent download (or a hang offline), and an error that does not help."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(SitError) as caught:
        choose_features("inception", None)
    assert INCEPTION_FILE in caught.value.message
    assert str(tmp_path / "hub" / "checkpoints") in caught.value.message
    for help in ("curl -L", "--features-weights", "--features pixels"):
        assert help in caught.value.hint


def test_wrong_files_and_combinations_are_refused(tmp_path):
    """Catches tracebacks for files that are not what the option says."""
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"no module" * 100)
    with pytest.raises(SitError, match="not a TorchScript module"):
        load_extractor(choose_features(str(junk), None), CPU)
    with pytest.raises(SitError, match="InceptionV3's weights"):
        load_extractor(choose_features("inception", junk), CPU)
    torch.save({"fc.weight": torch.zeros(1)}, junk)
    with pytest.raises(SitError, match="InceptionV3's weights"):
        load_extractor(choose_features("inception", junk), CPU)
    with pytest.raises(UsageError):
        choose_features("pixels", junk)
    with pytest.raises(UsageError):
        choose_features("resnet", None)


class Mean(torch.nn.Module):
    """Features of a TorchScript user: colour means, or on request something that is not allowed."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, 3), or (B, 3, 1, 1)."""
        means = images.float().mean(dim=(2, 3))
        return means[:, :, None, None] if self.wrong else means


def test_a_torchscript_module_is_an_extractor(tmp_path):
    """Catches a change of layout or dtype before the user's module; and outputs of wrong form."""
    path = tmp_path / "mean.pt"
    torch.jit.save(torch.jit.script(Mean()), path)
    features = choose_features(str(path), None)
    extractor = load_extractor(features, CPU)
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    found = extractor.extract(images)["pool"]
    torch.testing.assert_close(found, images.float().mean(dim=(2, 3)))
    assert features.label("FID") == f"FD[mean.pt:{features.hash[:8]}]"
    assert extractor.logits is None
    torch.jit.save(torch.jit.script(Mean(wrong=True)), path)
    with pytest.raises(SitError, match="must return features"):
        load_extractor(choose_features(str(path), None), CPU).extract(images)


@pytest.mark.parametrize("fid", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_figures_equal_torch_fidelitys_own(inception_weights, fid):
    """Catches any difference from torch-fidelity's preprocessing, network or formulas, with the
    real architecture and seeded random weights. (Its eigenvalues of 2048 features are slow.)"""
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, seed: int, num: int) -> None:
            rng = np.random.default_rng(seed)
            base = rng.integers(0, 256, (num, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
            noise = rng.integers(-20, 20, base.shape) * (1 + seed)
            self.data = torch.from_numpy((base + noise).clip(0, 255).astype(np.uint8))

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.data[index]

    fake, real = Images(0, 12), Images(1, 10)
    theirs = torch_fidelity.calculate_metrics(
        input1=fake,
        input2=real,
        cuda=False,
        fid=fid,
        kid=True,
        isc=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
        feature_layer_prc="2048",
        kid_subset_size=10,
        isc_splits=6,
        rng_seed=5,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
        batch_size=8,
    )
    extractor = load_extractor(choose_features("inception", inception_weights), CPU)
    a, b = (torch.cat([extractor.extract(s.data[i : i + 8])["pool"] for i in range(0, len(s), 8)])
            for s in (fake, real))  # fmt: skip
    if fid:
        value = frechet_distance(gaussian_of(moments(a.numpy())), gaussian_of(moments(b.numpy())))
        assert value > 0.1
        assert value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    kid, spread = kernel_distance(a.numpy(), b.numpy(), seed=5)
    assert abs(kid) > 1e-3
    # A difference of float32 kernel values of order one.
    assert kid == pytest.approx(theirs["kernel_inception_distance_mean"], abs=3e-7)
    assert spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3, abs=3e-7)
    # Such a network is hardly surer of one image than of another: compare what exceeds 1.
    score, _, _ = inception_score(extractor.logits(a), seed=5, ordered=False)
    assert score > 1.001
    assert score - 1 == pytest.approx(theirs["inception_score_mean"] - 1, rel=1e-4)
    assert precision_recall(a.numpy(), b.numpy()) == pytest.approx(
        (theirs["precision"], theirs["recall"]), abs=1e-6
    )


def test_dinov2_is_its_own_papers_network(tmp_path):
    """Faults: another class token, norm or activation than DINOv2's, pictures that are rounded or
    not antialiased, and the position grid resized by timm's recipe: written out from the weights.
    """
    import timm
    import torch.nn.functional as F

    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False)
    rng = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=rng) * (0.5 if value.ndim == 1 else 0.05)
        for name, value in network.state_dict().items()
    }
    path = tmp_path / "dinov2.pth"
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, path)
    features = choose_features("dinov2", dinov2_weights=path)
    images = torch.randint(0, 256, (2, 3, 40, 48), generator=rng).to(torch.uint8)
    found = load_extractor(features, CPU).extract(images)["pool"]

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (384,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    patch, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    tokens = F.conv2d((x - mean) / std, patch, bias, stride=14).flatten(2).transpose(1, 2)
    grid = state["pos_embed"][0, 1:].T.reshape(1, 384, 37, 37)
    grid = F.interpolate(grid, scale_factor=16.1 / 37, mode="bicubic").flatten(2).transpose(1, 2)
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(2, -1, -1)
    tokens = torch.cat([first, tokens + grid], dim=1)
    for i in range(12):
        name = f"blocks.{i}"
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", tokens))
        q, k, v = qkv.view(2, 257, 3, 6, 64).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2).reshape(2, 257, 384)
        tokens = tokens + state[f"{name}.ls1.gamma"] * linear(f"{name}.attn.proj", mixed)
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", tokens)))
        tokens = tokens + state[f"{name}.ls2.gamma"] * linear(f"{name}.mlp.fc2", hidden)
    torch.testing.assert_close(found, norm("norm", tokens)[:, 0], rtol=1e-4, atol=1e-4)

    assert features.label("FID") == f"FD[dinov2:{features.hash[:8]}]"
    torch.save({"pos_embed": state["pos_embed"]}, path)
    with pytest.raises(SitError, match="does not hold DINOv2's weights"):
        load_extractor(choose_features("dinov2", dinov2_weights=path), CPU)
