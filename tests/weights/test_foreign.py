"""Parts of other people's networks that cannot be imported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.errors import SitError
from sitcli.model.blocks import BLOCKS, MLPS, NORMS, QK_NORMS
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.weights.foreign import PARTS, check_foreign
from tests.weights.official_files import CONFIG, bring, official, save

# Keys of REG's and SpeedrunDiT's networks beyond those of REPA's.
REG = ["cls_projectors2.weight", "cls_projectors2.bias", "wg_norm.weight", "wg_norm.bias",
       "final_layer.linear_cls.weight", "final_layer.linear_cls.bias"]  # fmt: skip
SPEEDRUN = ["mask_token", "fusion_proj.weight", "fusion_proj.bias", "blocks.1.attn.v1_lambda"]


def test_parts_that_stand_in_the_way_are_named(tmp_path: Path) -> None:
    """Catches: a file refused for one tensor, of which nobody knows what it is."""
    state = official() | {key: torch.zeros(2) for key in (*REG, *SPEEDRUN)}
    with pytest.raises(SitError) as caught:
        bring(save(tmp_path / "0400000.pt", {"ema": state}), tmp_path / "run")
    message = caught.value.message
    assert "\n" not in message
    assert "'cls_projectors2.weight' and 5 more: REG's class token" in message
    assert "'fusion_proj.weight' and 1 more: SPRINT's fusion" in message
    assert "'blocks.1.attn.v1_lambda': a residual" in message
    assert not (tmp_path / "run").exists()


def test_none_of_our_own_tensors_is_foreign() -> None:
    """Catches: a pattern that also fits a tensor of ours, whose files would all be refused."""
    for block in BLOCKS:
        for mlp, norm, kind in zip([*MLPS] * 2, [*NORMS] * 2, [*QK_NORMS] * 2, strict=True):
            config = TransformerConfig(
                **{f: getattr(CONFIG, f) for f in ("input_size", "patch", "channels", "width")},
                out_channels=4, depth=2, heads=4, num_classes=3, block=block, mlp=mlp, norm=norm,
                qk_norm=True, qk_kind=kind, aux_block=1, align_block=1, align_width=3,
            )  # fmt: skip
            with torch.device("meta"):
                check_foreign("x", Transformer(config).state_dict())


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("double_blocks.3.img_attn.qkv.weight", "FLUX"),
        ("in_blocks.0.attn.qkv.weight", "U-ViT"),
        ("input_blocks.1.0.in_layers.0.weight", "U-Net"),
        ("blocks.0.mlp.experts.2.fc1.weight", "experts"),
        ("blocks.0.attn.qkv.lora_A.default.weight", "low-rank"),
        ("blocks.4.scale_shift_table", "PixArt"),
        ("r_embedder.mlp.0.weight", "a second time"),
        ("register_tokens", "register tokens"),
    ],
)
def test_known_parts(key: str, what: str) -> None:
    """Catches: a pattern that fits no key."""
    with pytest.raises(SitError, match=what):
        check_foreign("x", ["x_embedder.proj.weight", key])
    assert len({text for _, text in PARTS}) == len(PARTS)
