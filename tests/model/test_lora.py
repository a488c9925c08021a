"""Low-rank adapters: names, and merging."""

from __future__ import annotations

import pytest
import torch

from sitcli.commands.train.adapters import add_adapters
from sitcli.model.lora import adapted_layers, file_name, is_adapter, merged, whole
from sitcli.model.transformer import Transformer
from tests.model.networks import TINY, filled


def test_names():
    """Catches: names of peft's own in files, which another version of it may spell otherwise."""
    assert file_name("blocks.0.attn.qkv.lora_A.default.weight") == "blocks.0.attn.qkv.lora_A.weight"
    assert file_name("blocks.0.attn.qkv.base_layer.bias") == "blocks.0.attn.qkv.bias"
    assert file_name("t_embedder.mlp.0.weight") == "t_embedder.mlp.0.weight"
    assert is_adapter("blocks.0.attn.qkv.lora_B.weight")
    assert not is_adapter("blocks.0.attn.qkv.base_layer.weight")


def test_merging_by_hand():
    """W + B A; what is no adapter replaces the base's."""
    base = {"a.weight": torch.ones(2, 3), "b": torch.zeros(2), "c": torch.ones(1)}
    trained = {
        "a.lora_A.weight": torch.tensor([[1.0, 2, 3]]),
        "a.lora_B.weight": torch.tensor([[10.0], [100]]),
        "b": torch.full((2,), 7.0),
    }
    found = merged(base, trained)
    assert found["a.weight"].tolist() == [[11, 21, 31], [101, 201, 301]]
    assert (found["b"].tolist(), found["c"].tolist()) == ([7, 7], [1])
    assert found.keys() == base.keys()


def test_the_merged_network_computes_what_peft_s_does():
    """Catches: an adapter beside the wrong layer, scaled otherwise, or transposed."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    network = filled(TINY)
    layers = adapted_layers(network)
    assert len(layers) == 4 * TINY.depth
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    add_adapters(network, 3)
    assert all(torch.equal(whole(network.state_dict())[name], before[name]) for name in before)
    for name, parameter in network.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.3)
    plain = Transformer(TINY)
    plain.load_state_dict(whole(network.state_dict()))
    shape = TINY.latent_shape
    inputs = torch.randn(2, *shape), torch.tensor([0.1, 0.8]), torch.tensor([0, 1])
    # The same sums in another order, in float32.
    torch.testing.assert_close(plain(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(*inputs), filled(TINY)(*inputs), atol=1e-2)
