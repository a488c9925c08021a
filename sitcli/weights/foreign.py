"""Parts of other people's networks that ours has no place for, by the keys of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sitcli.errors import SitError

# (keys, what they are); the first row that a key matches counts.
PARTS: tuple[tuple[str, str], ...] = (
    (r"cls_projectors2\.|wg_norm\.|final_layer\.linear_cls\.",
     "REG's class token, which is denoised beside the latents"),
    (r"fusion_proj\.", "SPRINT's fusion of dense and sparse tokens"),
    (r".*\.v1_lambda$", "a residual of the first block's values"),
    (r"mask_token$", "a token for masked places"),
    (r"(register_tokens|registers|reg_tokens?)(\.|$)", "register tokens"),
    (r"cls_token$", "a class token"),
    (r"(en_inblocks|en_outblocks|de_blocks|sideblocks)\.|.*\.rel_pos_bias",
     "MDT's encoder, decoder and biases of relative positions"),
    (r"decoder_(pos_embed|layer)", "MaskDiT's decoder"),
    (r"(in|out)_blocks\.|mid_block\.|.*\.skip_linear\.", "long skips, as U-ViT has them"),
    (r"(double|single)_(stream_)?blocks\.", "blocks with two streams, as FLUX has them"),
    (r"joint_blocks\.|context_embedder\.", "a text's tokens, as in MMDiT"),
    (r"caption_projection\.|y_embedder\.y_proj|.*scale_shift_table$|t_block\.|adaln_single\.",
     "PixArt's text and shared modulation"),
    (r".*\.(experts|moe|gate_weight)\.", "a mixture of experts"),
    (r".*\.?(lora_[AB]|lora_(up|down))\.", "low-rank adapters beside the weights"),
    (r"s_(embedder|projector)\.|(enc|dec)_feat_rope\.", "DDT's decoder and its condition"),
    (r"(r|dt|h)_embedder\.", "a second time"),
    (r"(guidance|cfg|w)_(embedder|embedding|embed)\.", "an embedding of the guidance scale"),
    (r".*\.rope\.|rope\.|freqs_cis$", "tables of a rotary embedding"),
    (r"(input|output|down|up)_blocks\.|middle_block\.", "a U-Net"),
)  # fmt: skip


def check_foreign(path: object, keys: Iterable[str]) -> None:
    """Raise SitError if tensors are of parts that no network of ours has, naming each part."""
    found: dict[str, list[str]] = {}
    for key in keys:
        what = next((what for pattern, what in PARTS if re.match(pattern, key)), None)
        if what is not None:
            found.setdefault(what, []).append(key)
    if found:
        words = "; ".join(f"{_some(keys_)}: {what}" for what, keys_ in found.items())
        raise SitError(
            f"{path} has parts that sit's networks lack: {words}",
            "sit import takes DiT, SiT, REPA and LightningDiT",
        )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"'{keys[0]}'{more}"
