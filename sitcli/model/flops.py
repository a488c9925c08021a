"""What a transformer costs: parameters and multiply-accumulates, part by part.

What the papers call "Gflops" are multiply-accumulates (MACs) of the matrix products of one
forward pass for one sample, attention included; a floating-point operation count is twice that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from sitcli.model.blocks import BLOCKS, MLP_RATIO, MLPS, NORMS, QK_NORMS
from sitcli.model.config import PRESETS, TransformerConfig, projector_width
from sitcli.model.embed import TimestepEmbedder
from sitcli.model.transformer import Transformer


class Cost(NamedTuple):
    """params: trained numbers; macs: multiply-accumulates of one forward pass for one sample."""

    params: int
    macs: int


class Published(NamedTuple):
    """A row of the DiT paper's Table 4, in its own (rounded) units."""

    mparams: float
    gmacs: float


# DiT Table 4; 1000 classes, outputs of twice the latent's channels. SiT's networks are the same.
PUBLISHED_256: dict[tuple[str, int], Published] = {
    ("S", 8): Published(33, 0.36),
    ("S", 4): Published(33, 1.41),
    ("S", 2): Published(33, 6.06),
    ("B", 8): Published(131, 1.42),
    ("B", 4): Published(130, 5.56),
    ("B", 2): Published(130, 23.01),
    ("L", 8): Published(459, 5.01),
    ("L", 4): Published(458, 19.70),
    ("L", 2): Published(458, 80.71),
    ("XL", 8): Published(676, 7.39),
    ("XL", 4): Published(675, 29.05),
    ("XL", 2): Published(675, 118.64),
}
PUBLISHED_512: dict[tuple[str, int], Published] = {("XL", 2): Published(675, 524.60)}
# The comparison of block designs (DiT Figure 5, Table 4), which the paper makes at XL/2 alone.
PUBLISHED_BLOCKS: dict[str, Published] = {
    "adaln-zero": PUBLISHED_256["XL", 2],
    "adaln": Published(600, 118.56),
    "cross-attention": Published(598, 137.62),
    "in-context": Published(449, 119.37),
}
# By block design and side of the latent.
PUBLISHED: dict[tuple[str, int], dict[tuple[str, int], Published]] = {
    **{(block, 32): {("XL", 2): published} for block, published in PUBLISHED_BLOCKS.items()},
    ("adaln-zero", 32): PUBLISHED_256,
    ("adaln-zero", 64): PUBLISHED_512,
}


def count_costs(
    config: TransformerConfig, *, routed: tuple[int, int, int] | None = None
) -> dict[str, Cost]:
    """Part -> cost of the transformer, by formula; the sums are the whole network's.

    routed: (K, start, stop) where only K tokens pass through blocks start .. stop - 1 (`Route`).
    The auxiliary head and the projector have parameters and, as they are not evaluated unless
    something taps them, no MACs.

    Normalisation, activations and element-wise products are no matrix products and no MACs, as in
    the papers; neither is the label table's look-up. The position embedding is fixed. Parts that
    the block design does not have are left out.
    """
    d, depth, T = config.width, config.depth, config.tokens
    design = BLOCKS[config.block]
    context = design.context
    kept, start, stop = routed or (T, 0, 0)
    # (tokens of the image, blocks they pass through)
    spans = [(T, depth - (stop - start)), (kept, stop - start)]
    tokens = sum(n * (number + design.appended) for number, n in spans)  # over all blocks
    squares = sum(n * (number + design.appended) ** 2 for number, n in spans)
    crossers = sum(n * number for number, n in spans)
    vectors = depth * design.vectors + design.final_vectors
    affine = NORMS[config.norm].vectors(design.affine)
    norms = depth * design.norms + 1
    # A head's queries and keys have a gain each, and perhaps a bias.
    qk_gains = depth * 2 * (d // config.heads) * config.qk_norm * QK_NORMS[config.qk_kind].vectors
    mlp = _mlp_cost(config)
    crossing = depth if context else 0  # the blocks with cross-attention
    frequencies = TimestepEmbedder.frequency_dim
    embedders = depth if config.own_embedders else 1
    patch_in = config.patch**2 * config.channels
    patch_out = config.patch**2 * config.out_channels
    parts = {
        "patch embedding": Cost(patch_in * d + d, patch_in * d * T),
        # A bias for every output: d (frequencies + 1) is the first layer, d (d + 1) the second.
        "time embedding": Cost(
            embedders * (d * (frequencies + 1) + d * (d + 1)), embedders * (frequencies * d + d**2)
        ),
        "label embedding": Cost(embedders * (config.num_classes + 1) * d, 0),
        # q, k, v and the output projection for every token; QK^T and its product with V.
        "attention": Cost(
            depth * (4 * d**2 + 4 * d) + qk_gains, 4 * d**2 * tokens + 2 * squares * d
        ),
        # q and the output projection for every token, k and v for the context alone.
        "cross-attention": Cost(
            crossing * (4 * d**2 + 4 * d),
            (crossing > 0) * (2 * d**2 + 2 * context * d) * crossers
            + crossing * 2 * d**2 * context,
        ),
        "mlp": Cost(depth * mlp.params, mlp.macs * tokens),
        # Once a sample, not once a token.
        "modulation": Cost(vectors * (d**2 + d), vectors * d**2),
        "normalisation": Cost(norms * affine * d, 0),
        "final layer": Cost(d * patch_out + patch_out, d * patch_out * T),
    }
    parts |= _unevaluated_costs(config)
    return {name: part for name, part in parts.items() if any(part)}


def _unevaluated_costs(config: TransformerConfig) -> dict[str, Cost]:
    """The auxiliary head and the projector, which have parameters alone."""
    d, design = config.width, BLOCKS[config.block]
    affine = NORMS[config.norm].vectors(design.affine)
    patch_out = config.patch**2 * config.out_channels
    parts = {}
    if config.aux_block:
        final = d * patch_out + patch_out + design.final_vectors * (d**2 + d) + affine * d
        parts["auxiliary head"] = Cost(final, 0)
    if config.align_block:
        h, D = projector_width(config), config.align_width
        parts["projector"] = Cost(d * h + h + h**2 + h + h * D + D, 0)
    return parts


def _mlp_layers(config: TransformerConfig) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of the linear maps of one block's MLP."""
    return MLPS[config.mlp].layers(config.width, MLP_RATIO * config.width)


def _mlp_cost(config: TransformerConfig) -> Cost:
    """Of one block's, for one token."""
    layers = _mlp_layers(config)
    return Cost(sum(k * n + n for k, n in layers), sum(k * n for k, n in layers))


def training_macs(
    config: TransformerConfig,
    *,
    routed: tuple[int, int, int] | None = None,
    aux: bool = False,
    align: bool = False,
) -> int:
    """Multiply-accumulates of a training step's forward pass for one sample."""
    parts = count_costs(config, routed=routed)
    macs = sum(part.macs for part in parts.values())
    d, T = config.width, config.tokens
    if aux:
        final_vectors = BLOCKS[config.block].final_vectors
        macs += parts["final layer"].macs + final_vectors * d**2
    if align:
        h = projector_width(config)
        macs += T * (d * h + h**2 + h * config.align_width)
    return macs


class Product(NamedTuple):
    """`count` matrix products (m, k) x (k, n) of one size in a forward pass."""

    part: str
    m: int
    k: int
    n: int
    count: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all `count` products."""
        return self.m * self.k * self.n * self.count

    @property
    def gradients(self) -> tuple[Product, Product]:
        """Those of the backward pass: of the (m, k) input and of the (k, n) weights."""
        part, m, k, n, count = self
        part += ", gradient"
        return Product(part, m, n, k, count), Product(part, k, m, n, count)


def matrix_products(config: TransformerConfig, batch: int) -> list[Product]:
    """The linear layers of a forward pass, by size, the most work first.

    With attention's own products, 2 T^2 d a block and sample, their MACs are `count_costs`'.
    """
    design, d, depth, T = BLOCKS[config.block], config.width, config.depth, config.tokens
    rows = batch * (T + design.appended)
    patch = config.patch**2
    found = [
        Product("queries, keys, values", rows, d, 3 * d, depth),
        Product("attention output", rows, d, d, depth),
        Product("modulation", batch, d, design.vectors * d, depth),
        Product("modulation, final", batch, d, design.final_vectors * d, 1),
        Product("patch embedding", batch * T, patch * config.channels, d, 1),
        Product("time embedding", batch, TimestepEmbedder.frequency_dim, d, 1),
        Product("time embedding", batch, d, d, 1),
        Product("final layer", batch * T, d, patch * config.out_channels, 1),
    ]
    if design.context:
        found += [
            Product("cross-attention", rows, d, d, 2 * depth),
            Product("cross-attention, context", batch * design.context, d, 2 * d, depth),
        ]
    for i, (k, n) in enumerate(_mlp_layers(config)):
        found.append(Product("MLP, out" if i else "MLP, in", rows, k, n, depth))
    return sorted((p for p in found if p.macs), key=lambda p: -p.macs)


def total_cost(config: TransformerConfig) -> Cost:
    """The sum over all parts of `count_costs`."""
    parts = count_costs(config).values()
    return Cost(sum(part.params for part in parts), sum(part.macs for part in parts))


def measure_cost(config: TransformerConfig) -> Cost:
    """The same two figures from the real network on the meta device: no memory, no arithmetic.

    MACs are half of what torch's FlopCounterMode counts in one forward pass of one sample.
    """
    with torch.device("meta"):
        network = Transformer(config)
        x = torch.empty(1, *config.latent_shape)
        t, y = torch.empty(1), torch.empty(1, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, t, y)
    params = sum(parameter.numel() for parameter in network.parameters())
    return Cost(params, counter.get_total_flops() // 2)


def published_cost(config: TransformerConfig) -> Published | None:
    """The paper's figure for this very network, if the paper gives one."""
    table = PUBLISHED.get((config.block, config.input_size), {})
    others = config.channels, config.out_channels, config.num_classes, config.input_width
    if others != (4, 8, 1000, None) or config.beyond:
        return None
    for (size, patch), published in table.items():
        shape = (config.depth, config.width, config.heads)
        if patch == config.patch and PRESETS[size] == shape:
            return published
    return None
