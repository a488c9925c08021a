"""`sit bench`: what it measures is what it says, and options are not ignored."""

from __future__ import annotations

import statistics

import pytest
import torch

from sitcli.commands.bench import job, train
from sitcli.commands.bench.stage import LOOKED_AT, bench
from sitcli.errors import UsageError
from sitcli.settings.tools import BenchSettings
from tests.tiny import finish

TINY = dict(model="SiT-Mi/8", batch_size=2, rounds=2, device="cpu", precision="fp32")


def measured(what: str, **more):
    return finish(bench(BenchSettings(what=what, **TINY | more)))


def test_an_option_that_is_not_looked_at_is_refused() -> None:
    for what, option in [
        ("train", dict(vae="pixels")),
        ("sample", dict(find_batch=True)),
        ("gemm", dict(compile="off")),
        ("encode", dict(workers=2)),
        ("loader", dict(model="SiT-S/2")),
    ]:
        with pytest.raises(UsageError, match=f"means nothing to sit bench {what}"):
            finish(bench(BenchSettings(what=what, **option)))
    fields = {name for names in LOOKED_AT.values() for name in names}
    assert fields <= set(BenchSettings.__dataclass_fields__)


@pytest.mark.parametrize("what", ["train", "sample"])
def test_figures_follow_from_the_seconds(what: str, tmp_path, monkeypatch) -> None:
    """Fault: a rate of other operations than were done, or of another batch size."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    data = measured(what).data
    from sitcli.model.config import PRESETS, TransformerConfig
    from sitcli.model.flops import total_cost

    depth, width, heads = PRESETS["Mi"]
    config = TransformerConfig(
        input_size=32, patch=8, channels=4, out_channels=4, width=width, depth=depth,
        heads=heads, num_classes=1000,
    )  # fmt: skip
    forward = 2 * 2 * total_cost(config).macs  # a batch of two, two operations each
    assert data["flops"] == forward * (3 if what == "train" else 1)
    seconds = data["seconds"]
    assert len(seconds) == len(data["ratios"]) == 2
    assert data["images_per_second"] == pytest.approx(statistics.median(2 / s for s in seconds))
    expected = [
        data["flops"] / s / peak
        for s, peak in zip(seconds, data["matrix_product_rates"], strict=True)
    ]
    assert data["ratios"] == pytest.approx(expected)
    parts = ["attention", "MLP", "modulation, norms, residuals", "embeddings, final layer"]
    assert [*data["parts"]][:4] == parts
    assert all(value >= 0 for value in data["parts"].values())
    if what == "train":
        assert {"data", "optimizer", "average"} <= data["parts"].keys()
    else:
        steps = data["solver_step_seconds"]
        assert [*steps][:2] == ["ODE, Heun", "SDE, Euler-Maruyama"]
        assert len(steps) == 4


def test_products_are_measured_in_both_dtypes() -> None:
    result = measured("gemm", precision="bf16")
    rates = result.data["flops_per_second"]
    assert [*rates] == ["bf16", "fp32"]
    products = result.data["products"]
    assert len(result.tables[0].rows) == len(products) + 1
    first = products[0]
    assert (first["m"], first["k"], first["n"], first["count"]) == (32, 128, 512, 4)
    assert all(value > 0 for p in products for value in p["flops_per_second"].values())


def test_the_suggested_batch_is_the_smallest_fast_one(monkeypatch) -> None:
    """Fault: a suggestion that is not among the fastest, or that is larger than it need be."""
    speeds = iter([1.0, 2.0, 3.9, 4.0, 3.8, 3.0])

    def tried(task):
        return dict(images_per_second=next(speeds), memory=1000)

    monkeypatch.setattr(job, "_try_batch", tried)
    result = measured("train", find_batch=True)
    assert result.data["suggested"] == 4
    assert [row["batch_size"] for row in result.data["sizes"]] == [1, 2, 4, 8, 16]
    assert "more bring nothing" in result.summary["stopped"]


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("full"), None])
def test_batches_that_do_not_fit_end_the_search(monkeypatch, full) -> None:
    def tried(task):
        if full is not None and task.batch == 8:
            raise full
        memory = train._memory() if full is None and task.batch == 4 else 1000
        return dict(images_per_second=float(task.batch), memory=memory)

    monkeypatch.setattr(job, "_try_batch", tried)
    result = measured("train", find_batch=True)
    assert result.data["suggested"] == 4
    assert ("does not fit" if full else "might not fit") in result.summary["stopped"]


def test_encoding_stands_beside_the_bare_autoencoder(tmp_path) -> None:
    """Fault: images left behind, or a ratio of other rounds."""
    settings = BenchSettings(
        what="encode", vae="pixels", image_size=16, images=6, batch_size=4, rounds=2,
        device="cpu", dir=tmp_path,
    )  # fmt: skip
    data = finish(bench(settings)).data
    pairs = zip(data["stage_images_per_second"], data["bare_images_per_second"], strict=True)
    assert data["ratio"] == pytest.approx(statistics.median(s / b for s, b in pairs))
    assert [*tmp_path.iterdir()] == []
