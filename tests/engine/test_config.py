"""DeepSpeed's configuration: ours, and what a file adds to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sitcli.engine.config import default_stage, engine_config, merge_config, read_file
from sitcli.errors import UsageError
from sitcli.machine.world import World


def config(**more):
    options = dict(
        dtype=torch.bfloat16, zero=2, offload="none", micro_batch=4, accumulate=2,
        world=World(0, 3), clip=1.0,
    )  # fmt: skip
    return engine_config(**{**options, **more})


def merged_with(file: Path):
    return merge_config(config(), read_file(file), file)


def write(path: Path, value) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_the_file_adds_what_no_option_says(tmp_path: Path) -> None:
    """Catches: the file ignored, or a section of it replacing ours as a whole."""
    file = write(
        tmp_path / "ds.json",
        {
            "train_batch_size": "auto",
            "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000},
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": False},
            "communication_data_type": "fp32",
        },
    )
    merged = merged_with(file)
    assert merged["train_batch_size"] == 24
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert merged["communication_data_type"] == "fp32"
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert merged["torch_autocast"] == autocast
    assert "fp16" not in merged
    assert "bf16" not in merged


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"train_batch_size": 8}, "train_batch_size 8, but --batch-size 24"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps 1, but --accumulate 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5, but --clip 1.0"),
        (
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage 3, but --zero and --offload 2",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer",
        ),
        ({"torch_autocast": {"dtype": "float16"}}, 'torch_autocast.dtype "float16", but --prec'),
        ({"bf16": {"enabled": True}}, "a section 'bf16'"),
        ({"optimizer": {"type": "Adam"}}, "a section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "a section 'scheduler'"),
        ([1], "does not hold a DeepSpeed configuration"),
    ],
)
def test_contradictions_name_both(tmp_path: Path, theirs, message: str) -> None:
    """Catches: one of two that contradict winning in silence."""
    with pytest.raises(UsageError) as error:
        merged_with(write(tmp_path / "ds.json", theirs))
    assert message in error.value.message
    assert "ds.json" in error.value.message


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """Catches: a traceback for a file that is missing or not JSON."""
    with pytest.raises(UsageError, match="cannot read"):
        read_file(tmp_path / "none.json")
    (tmp_path / "ds.json").write_text("{1: 2}")
    with pytest.raises(UsageError, match=r"ds.json is not JSON"):
        read_file(tmp_path / "ds.json")


@pytest.mark.parametrize(("offload", "zero"), [("optimizer", 0), ("params", 2)])
def test_offload_needs_its_stage(offload: str, zero: int) -> None:
    """Catches: an option that DeepSpeed ignores, or its own traceback."""
    with pytest.raises(
        UsageError, match=rf"--offload {offload} needs --zero \d, not --zero {zero}"
    ):
        config(offload=offload, zero=zero)
    assert "offload_optimizer" in config(offload=offload, zero=3)["zero_optimization"]


@pytest.mark.parametrize(
    ("size", "offload", "file", "stage"),
    [
        (1, "none", {}, 0),
        (2, "none", {}, 1),
        (1, "optimizer", {}, 1),
        (2, "params", {}, 3),
        (1, "none", {"zero_optimization": {"stage": 2}}, 2),
        (4, "none", {"zero_optimization": {"stage": "auto"}}, 1),
    ],
)
def test_the_stage_that_no_option_says(size: int, offload: str, file: dict, stage: int) -> None:
    """Catches: one process that shards for nobody, an offload refused for want of a stage, or a
    file's stage called a contradiction of an option that nobody gave."""
    assert default_stage(offload, World(0, size), file) == stage
    assert engine_config(
        dtype=torch.float32, zero=stage, offload=offload, micro_batch=1, accumulate=1,
        world=World(0, size), clip=0.0,
    )["zero_optimization"]["stage"] == stage  # fmt: skip
