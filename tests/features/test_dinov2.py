"""DINOv2 against its own paper's network."""

import pytest
import torch

from sitcli.errors import SitError
from sitcli.features.extractors import choose_features, load_extractor

CPU = torch.device("cpu")


def test_dinov2_is_its_own_papers_network(tmp_path):
    """Catches: another class token, norm or activation than DINOv2's, pictures that are rounded or
    not antialiased, and the position grid resized by timm's recipe: written out from the
    weights."""
    import timm
    import torch.nn.functional as F

    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False)
    rng = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=rng) * (0.5 if value.ndim == 1 else 0.05)
        for name, value in network.state_dict().items()
    }
    path = tmp_path / "dinov2.pth"
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, path)
    features = choose_features("dinov2", {"dinov2": path})
    images = torch.randint(0, 256, (2, 3, 40, 48), generator=rng).to(torch.uint8)
    found = load_extractor(features, CPU).extract(images)["pool"]

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (384,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    patch, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    tokens = F.conv2d((x - mean) / std, patch, bias, stride=14).flatten(2).transpose(1, 2)
    grid = state["pos_embed"][0, 1:].T.reshape(1, 384, 37, 37)
    grid = F.interpolate(grid, scale_factor=16.1 / 37, mode="bicubic").flatten(2).transpose(1, 2)
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(2, -1, -1)
    tokens = torch.cat([first, tokens + grid], dim=1)
    for i in range(12):
        name = f"blocks.{i}"
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", tokens))
        q, k, v = qkv.view(2, 257, 3, 6, 64).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2).reshape(2, 257, 384)
        tokens = tokens + state[f"{name}.ls1.gamma"] * linear(f"{name}.attn.proj", mixed)
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", tokens)))
        tokens = tokens + state[f"{name}.ls2.gamma"] * linear(f"{name}.mlp.fc2", hidden)
    torch.testing.assert_close(found, norm("norm", tokens)[:, 0], rtol=1e-4, atol=1e-4)

    assert features.label("FID") == f"FD[dinov2:{features.hash[:8]}]"
    torch.save({"pos_embed": state["pos_embed"]}, path)
    with pytest.raises(SitError, match="does not hold DINOv2's weights"):
        load_extractor(choose_features("dinov2", {"dinov2": path}), CPU)
