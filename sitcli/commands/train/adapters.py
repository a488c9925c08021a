"""--lora: low-rank adapters in the blocks of the network, made by peft."""

from __future__ import annotations

import warnings

from sitcli.errors import SitError
from sitcli.model.config import TransformerConfig
from sitcli.model.lora import A, B, adapted_layers
from sitcli.model.transformer import Transformer, weightless


def check_peft() -> None:
    """Raise SitError if peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise SitError("--lora needs peft", "pip install 'sitcli[lora]'") from None


def add_adapters(network: Transformer, rank: int) -> None:
    """Put an adapter of this rank beside every layer of `adapted_layers`, in place.

    alpha = rank, so that an adapter adds B A; B begins as 0.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = adapted_layers(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
        inject_adapter_in_model(config, network)


def adapter_sizes(config: TransformerConfig, rank: int) -> dict[str, int]:
    """The names in files of the matrices that `add_adapters` adds to this network, and their
    elements."""
    network, sizes = weightless(config), {}
    for name in adapted_layers(network):
        layer = network.get_submodule(name)
        sizes[f"{name}.{A}.weight"] = rank * layer.in_features
        sizes[f"{name}.{B}.weight"] = rank * layer.out_features
    return sizes
