"""All metrics together: against torch-fidelity, and on equal and disjoint sets."""

import numpy as np
import pytest
import torch

from sitcli.features.extractors import choose_features, load_extractor
from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.inception_score import inception_score
from sitcli.metrics.kid import kernel_distance
from sitcli.metrics.moments import gaussian_of
from sitcli.metrics.neighbours import precision_recall
from tests.tiny import inception_file, moments


def test_identical_and_disjoint_sets():
    """Catches: any metric that does not know equal sets from sets that have nothing in common."""
    rng = np.random.default_rng(2)
    a = rng.normal(size=(200, 8)).astype(np.float32)
    far = a + 1000
    one, other = gaussian_of(moments(a)), gaussian_of(moments(far))
    assert frechet_distance(one, one) < 1e-10
    # float32 keeps 1000 + x to 3e-5.
    assert frechet_distance(one, other) == pytest.approx(8e6, rel=1e-6)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(far, a) == (0.0, 0.0)
    # The unbiased estimate of a set against itself is known: what the diagonal makes it.
    kernel = (a.astype(np.float64) @ a.T / 8 + 1) ** 3
    same = 2 * ((kernel.sum() - np.trace(kernel)) / (200 * 199) - kernel.mean())
    assert kernel_distance(a, a, seed=0)[0] == pytest.approx(same, rel=1e-9)
    assert kernel_distance(far, a, seed=0)[0] > 1e15


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """The real network with random weights, as a file of the official one's form."""
    return inception_file(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.mark.parametrize("fid", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_figures_equal_torch_fidelitys_own(inception_weights, fid):
    """Catches: any difference from torch-fidelity's preprocessing, network or formulas, with the
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
    extractor = load_extractor(choose_features("inception", {"inception": inception_weights}), CPU)
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
    logits = extractor.logits(a)
    score, _, _ = inception_score(logits, seed=5, random_order=False, splits=6)
    assert score > 1.001
    assert score - 1 == pytest.approx(theirs["inception_score_mean"] - 1, rel=1e-4)
    assert precision_recall(a.numpy(), b.numpy()) == pytest.approx(
        (theirs["precision"], theirs["recall"]), abs=1e-6
    )
