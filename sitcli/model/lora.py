"""Low-rank adapters of a network's linear layers (Hu et al. 2022, LoRA): names, and merging."""

from __future__ import annotations

import torch
from torch import Tensor, nn

A, B = "lora_A", "lora_B"
WRAPPED, ADAPTER = ".base_layer", ".default"  # parts of peft's names that files leave out


def adapted_layers(network: nn.Module) -> list[str]:
    """The layers that get an adapter: all linear ones of the blocks, but those of modulation."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and "adaLN_modulation" not in name
    ]


def file_name(name: str) -> str:
    """A parameter's name in files, from its name in a network with adapters.

    'blocks.0.attn.qkv.lora_A.default.weight' -> 'blocks.0.attn.qkv.lora_A.weight'.
    """
    if is_adapter(name):
        return name.replace(ADAPTER, "")
    return name.replace(WRAPPED, "")


def is_adapter(name: str) -> bool:
    """Whether this is the name of an adapter's matrix."""
    return f".{A}." in name or f".{B}." in name


def merged(base: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the whole network: W + B A in the place of W (Hu et al., eq. 3, alpha = r).

    base: all weights before training; trained: adapters, A (r, in) and B (out, r), and tensors that
    replace those of the base. The products are computed in float32.
    """
    whole = dict(base)
    for name, tensor in trained.items():
        if not is_adapter(name):
            whole[name] = tensor
    for name, down in trained.items():
        if f".{A}." in name:
            target = name.replace(f".{A}.", ".")
            up = trained[name.replace(f".{A}.", f".{B}.")]
            whole[target] = whole[target] + up.float() @ down.float()
    return whole


@torch.no_grad()
def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network with adapters as that of one without; others as they are."""
    named = {file_name(name): tensor for name, tensor in state.items()}
    adapters = {name: tensor for name, tensor in named.items() if is_adapter(name)}
    return merged({name: t for name, t in named.items() if name not in adapters}, adapters)
