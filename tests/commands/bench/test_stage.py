"""`sit bench`: what it measures is what it says, and options are not ignored."""

from __future__ import annotations

import statistics

import pytest

from sitcli.commands.bench.stage import OPTIONS_OF, bench
from sitcli.errors import UsageError
from sitcli.settings.tools import BenchSettings
from tests.commands.bench.measuring import measured
from tests.tiny import finish


def test_an_option_that_is_not_looked_at_is_refused() -> None:
    """Catches: an option that this benchmark accepts and ignores."""
    for what, option in [
        ("train", dict(vae="pixels")),
        ("sample", dict(find_batch=True)),
        ("gemm", dict(compile="off")),
        ("encode", dict(workers=2)),
        ("loader", dict(model="SiT-S/2")),
    ]:
        with pytest.raises(UsageError, match=f"has no effect with sit bench {what}"):
            finish(bench(BenchSettings(what=what, **option)))
    fields = {name for names in OPTIONS_OF.values() for name in names}
    assert fields <= set(BenchSettings.__dataclass_fields__)


@pytest.mark.parametrize("what", ["train", "sample"])
def test_figures_follow_from_the_seconds(what: str, tmp_path, monkeypatch) -> None:
    """Catches: a rate of other operations than were done, or of another batch size."""
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
