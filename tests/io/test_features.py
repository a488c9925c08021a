"""Feature extractors, their statistics and the distances between them."""

import numpy as np
import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.io.features import (
    INCEPTION_FILE,
    INCEPTION_HASH,
    Features,
    Gaussian,
    Moments,
    choose_features,
    frechet_distance,
    gaussian_of,
    inception_score,
    kernel_distance,
    load_extractor,
    load_statistics,
    precision_recall,
    save_statistics,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """The real network with random weights, as a file of the official one's form."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    path_empty = path.with_name("empty.pth")
    torch.save({}, path_empty)
    with pytest.MonkeyPatch.context() as patch:
        # The constructor has no "do not load": give it nothing to load.
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3(
            "x", ["2048"], feature_extractor_weights_path=str(path_empty)
        )
    # Plain random weights shrink every image to the same features; He's keep their spread.
    rng = torch.Generator().manual_seed(0)
    for name, weight in network.state_dict().items():
        if name.endswith("conv.weight"):
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=rng)
        elif name == "fc.weight":
            weight.normal_(0, 0.1, generator=rng)
    torch.save(network.state_dict(), path)
    return path


def moments(vectors, block=7):
    total = Moments(vectors.shape[1])
    for start in range(0, len(vectors), block):
        total.add(vectors[start : start + block])
    return total


def test_blocks_give_numpys_mean_and_covariance_even_far_from_zero():
    """Catches a wrong merge of blocks, and sums of squares that cancel."""
    vectors = np.random.default_rng(0).normal(size=(50, 5)) + 1e6
    gaussian = gaussian_of(moments(vectors))
    np.testing.assert_allclose(gaussian.mean, vectors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.covariance, np.cov(vectors.T), rtol=1e-7)
    assert gaussian.num == 50


def test_merged_halves_are_the_whole():
    """Catches a reference whose statistics differ from those of its two halves together."""
    vectors = np.random.default_rng(1).normal(size=(31, 4))
    first, second = moments(vectors[:9]), moments(vectors[9:])
    first.merge(second)
    first.merge(Moments(4))
    np.testing.assert_allclose(gaussian_of(first).covariance, np.cov(vectors.T), rtol=1e-12)


def test_one_vector_has_no_covariance():
    """Catches a division by zero reported as a figure."""
    with pytest.raises(SitError, match="at least 2"):
        gaussian_of(moments(np.ones((1, 3))))


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    """Catches a wrong trace term: sum (sqrt a - sqrt b)^2 + |m|^2 when both are diagonal."""
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    a, b = np.arange(1.0, 7.0), np.array([4.0, 0.5, 9.0, 1.0, 2.0, 0.0])
    first = Gaussian(np.zeros(6), rotation @ np.diag(a) @ rotation.T, None)
    second = Gaussian(np.full(6, 2.0), rotation @ np.diag(b) @ rotation.T, None)
    expected = 24 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num", [5, 200])
def test_a_shift_costs_its_square_and_nothing_costs_nothing(num):
    """Catches rounding from square roots of zero eigenvalues when images are fewer than features
    (5 of 64), which an eigenvalue method leaves at 1e-6 of the trace."""
    vectors = np.random.default_rng(3).normal(size=(num, 64)) * 100
    same, shifted = gaussian_of(moments(vectors)), gaussian_of(moments(vectors + 3.0))
    trace = np.trace(same.covariance)
    assert frechet_distance(same, same) < 1e-11 * trace
    assert frechet_distance(same, shifted) == pytest.approx(64 * 9.0, abs=1e-11 * trace)


def test_constant_images_have_a_distance():
    """Catches a crash or nan for covariances that are exactly zero."""
    constant = gaussian_of(moments(np.ones((10, 8))))
    other = gaussian_of(moments(np.zeros((10, 8))))
    assert frechet_distance(constant, other) == pytest.approx(8.0, rel=1e-12)
    assert frechet_distance(constant, constant) == 0.0


def test_precision_and_recall_are_not_swapped():
    """Catches generated and real exchanged: few modes are precise and recall little."""
    real = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    generated = real[:30] * 0.3
    precision, recall = precision_recall(generated, real)
    assert precision == 1.0
    assert recall < 0.6


def test_kernel_distance_is_seeded_and_tells_a_shift():
    """Catches an unseeded choice of subsets, and subsets larger than the sets."""
    a = np.random.default_rng(4).normal(size=(60, 8)).astype(np.float32)
    b = np.random.default_rng(5).normal(size=(40, 8)).astype(np.float32)
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, seed=1)
    assert abs(kernel_distance(a, b, seed=1)[0]) < 0.1 < kernel_distance(a, b + 2, seed=1)[0]


def test_equal_sets_of_large_features_have_no_kernel_distance():
    """Catches float32 kernels, whose cancellation leaves 655360 here."""
    constant = np.full((30, 768), 100, np.float32)
    assert abs(kernel_distance(constant, constant[:20], seed=0)[0]) < 1e-2


def test_constant_images_are_precise_and_recalled():
    """Catches ties of distances that rounding turns into misses."""
    constant = np.full((30, 768), 0.3, np.float32)
    assert precision_recall(constant, constant[:20]) == (1.0, 1.0)
    assert precision_recall(constant, constant[:20] + 1) == (0.0, 0.0)


def test_inception_score_of_certain_and_balanced_classes_is_their_number():
    """Catches splits of sorted files that do not see all classes, and a wrong number of them."""
    logits = torch.eye(4).repeat_interleave(250, dim=0) * 100
    score, spread, recipe = inception_score(logits, seed=0, ordered=False)
    assert recipe == {"splits": 10, "shuffled": True}
    assert score == pytest.approx(4.0, abs=0.1)
    assert spread < 0.1
    assert inception_score(torch.randn(15_000, 3), seed=0, ordered=True)[2] == {
        "splits": 3,
        "shuffled": False,
    }


def test_pixels_are_area_averages():
    """Catches a resize that samples instead of averaging, and sizes of features."""
    extract = load_extractor(choose_features("pixels", None), CPU).extract
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    features = extract(images.to(torch.uint8))
    assert features.shape == (3, 768)
    expected = images[1, 2, 4:6, 10:12].double().mean() / 255
    assert features[1].reshape(3, 16, 16)[2, 2, 5] == pytest.approx(expected.item(), rel=1e-6)
    assert extract(torch.zeros(2, 3, 8, 12, dtype=torch.uint8)).shape == (2, 288)


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
    torch.testing.assert_close(extractor.extract(images), images.float().mean(dim=(2, 3)))
    assert features.label("FID") == f"FD[mean.pt:{features.hash[:8]}]"
    assert extractor.logits is None
    torch.jit.save(torch.jit.script(Mean(wrong=True)), path)
    with pytest.raises(SitError, match="must return features"):
        load_extractor(choose_features(str(path), None), CPU).extract(images)


def test_statistics_files_come_back_and_damage_is_one_line(tmp_path):
    """Catches statistics that change on the way, and numpy's or zipfile's own errors."""
    path = tmp_path / "s.npz"
    gaussian = gaussian_of(moments(np.random.default_rng(6).normal(size=(20, 5))))
    save_statistics(path, gaussian, features="pixels")
    loaded = load_statistics(path)
    np.testing.assert_array_equal(loaded.gaussian.covariance, gaussian.covariance)
    assert loaded.gaussian.num == 20
    assert str(loaded.more["features"]) == "pixels"
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:100] + b"\xff" * 40 + whole[140:]):
        path.write_bytes(damaged)
        with pytest.raises(SitError) as caught:
            load_statistics(path)
        assert "\n" not in caught.value.message


def test_frechet_distance_equals_torch_fidelitys_and_is_exact_where_that_is_not():
    """Catches a difference in formula; and, for fewer images than features, in precision: the
    factors are then known, torch-fidelity is off by 1e-7 and we may be by 1e-12."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    def theirs(a, b):
        a, b = (fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b))
        return fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]

    def ours(a, b):
        return frechet_distance(gaussian_of(moments(a)), gaussian_of(moments(b)))

    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(300, 20)) ** 2, rng.normal(size=(200, 20))
    assert ours(a, b) == pytest.approx(theirs(a, b), rel=1e-10)
    mix = rng.normal(size=(20, 256))
    a, b = (a @ mix)[:9], (b @ mix)[:8]
    assert ours(a, b) == pytest.approx(theirs(a, b), rel=1e-5)
    first, second = (a - a.mean(0)) / np.sqrt(8), (b - b.mean(0)) / np.sqrt(7)
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    exact = shift + np.square(first).sum() + np.square(second).sum() - 2 * cross
    assert ours(a, b) == pytest.approx(exact, rel=1e-12)


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
    a, b = (torch.cat([extractor.extract(s.data[i : i + 8]) for i in range(0, len(s), 8)])
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
