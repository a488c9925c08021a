"""DiT in a folder of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sitcli.errors import SitError, UsageError
from sitcli.storage.tensors import read_tensors, write_tensors
from tests.weights.official_files import CONFIG, bring, equal, official, save, take


def test_diffusers_own_folder(tmp_path: Path) -> None:
    """Catches: a stock folder, without our notes, that is not read, or read under other keys."""
    first = bring(save(tmp_path / "DiT-Mi-2-64x64.pt", official()), tmp_path / "a")
    folder = take(tmp_path / "a", tmp_path / "folder", "diffusers")
    (folder / "sit.safetensors").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): f"class {i}, other name" for i in range(5)}
    (folder / "model_index.json").write_text(json.dumps(index))
    run = bring(folder, tmp_path / "b")
    assert run.meta["lineage"] == "diffusers"
    assert run.latents["class_names"][2] == "class 2, other name"
    assert run.config == CONFIG
    assert equal(run.weights("ema"), first.weights("ema"))
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(file)
    with pytest.raises(UsageError, match="--interpolant is for SiT"):
        bring(folder, tmp_path / "c", interpolant="gvp")
    write_tensors(file, {**tensors, key: tensors[key] + 1})
    with pytest.raises(SitError, match=r"transformer_blocks\.1.*differs from block 0"):
        bring(folder, tmp_path / "c")
