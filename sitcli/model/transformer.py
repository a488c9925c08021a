"""The DiT/SiT transformer: presets, forward pass and initialisation."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sitcli.model.blocks import BLOCKS
from sitcli.model.embed import LabelEmbedder, PatchEmbed, TimestepEmbedder, position_embedding

# depth, width, heads (DiT Table 1); Mi and Ti are ours, for CPUs.
PRESETS: dict[str, tuple[int, int, int]] = {
    "Mi": (4, 128, 4),
    "Ti": (6, 192, 3),
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that fixes the shapes of the parameters.

    input_size: height of the latent; input_width: its width, None if it is square; channels: its
    channels; num_classes: 0 is unconditional; block: one of BLOCKS. Raises ValueError for sizes
    that do not fit together.
    """

    input_size: int
    patch: int
    channels: int
    out_channels: int
    width: int
    depth: int
    heads: int
    num_classes: int
    block: str = "adaln-zero"
    input_width: int | None = None

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"no block design is called '{self.block}'")
        for side in self.latent_shape[1:]:
            if side % self.patch:
                raise ValueError(f"patch {self.patch} does not divide the latent side {side}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        if self.width % 4:
            raise ValueError(f"the width {self.width} is not a multiple of 4")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.channels, self.input_size, self.input_width or self.input_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return tuple(side // self.patch for side in self.latent_shape[1:])

    @property
    def tokens(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def null_class(self) -> int:
        """The label that stands for no label; also the only one of an unconditional model."""
        return self.num_classes


def parse_model(name: str) -> tuple[str, str, int]:
    """'SiT-XL/2' -> ('SiT', 'XL', 2). Raises ValueError for anything else."""
    match = re.fullmatch(rf"(SiT|DiT)-({'|'.join(PRESETS)})/([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"no model is called '{name}'")
    return match[1], match[2], int(match[3])


def parse_checkpoint_blocks(text: str) -> int:
    """'none' -> 0, 'all' -> 1, 'every-3' -> 3: a Transformer's checkpoint_every.

    Raises ValueError for anything else.
    """
    if text in ("none", "all"):
        return int(text == "all")
    match = re.fullmatch(r"every-([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"'{text}' is none of none, all, every-2, every-3, ...")
    return int(match[1])


class Transformer(nn.Module):
    """The network of DiT (section 3) and SiT: latents, times and labels to a prediction.

    State-dict keys and layouts are those of the official releases. With num_classes 0 the label
    table has one row, the null class.

    checkpoint_every: where gradients are taken, recompute the inside of the first of every so many
    blocks backward instead of keeping it; 0: of none.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_every = 0
        self.design = BLOCKS[config.block]
        self.x_embedder = PatchEmbed(config.patch, config.channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.num_classes, config.width)
        # A buffer under the official key: ZeRO-1 consolidation loses frozen parameters.
        self.register_buffer("pos_embed", position_embedding(config.width, *config.grid))
        self.blocks = nn.ModuleList(
            self.design.block(config.width, config.heads) for _ in range(config.depth)
        )
        self.final_layer = self.design.final(config.width, config.patch, config.out_channels)
        self.initialize()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (B, C, h, w), t (B,), y (B,) int64 -> (B, C_out, h, w)."""
        tokens = self.x_embedder(x) + self.pos_embed  #           (B, T, d)
        time, label = self.t_embedder(t), self.y_embedder(y)  #   (B, d) each
        tokens, c = self.design.condition(tokens, time, label)  # as the design's blocks take them
        for i, block in enumerate(self.blocks):
            if self.checkpoint_every and i % self.checkpoint_every == 0:
                # Nothing in a block is random, so that no generator's state need be kept.
                tokens = checkpoint(block, tokens, c, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, c)
        tokens = tokens[:, : self.config.tokens]  #               (B, T, d), none of the appended
        tokens = self.final_layer(tokens, c)  #                   (B, T, p*p*C_out)
        return self.unpatchify(tokens)  #                         (B, C_out, h, w)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, T, p*p*C) -> (B, C, h, w): a token holds (p, q, c) in this order."""
        p, C = self.config.patch, self.config.out_channels
        rows, columns = self.config.grid
        x = tokens.view(-1, rows, columns, p, p, C)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, C, rows * p, columns * p)

    @torch.no_grad()
    def initialize(self) -> None:
        """All initial values, as the DiT paper's section 3.2 and its release have them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The patch convolution is a linear map of flattened patches.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        # Nothing is modulated at first: an adaLN block begins as a plain one, and with the gates of
        # adaLN-Zero as the identity. Affine LayerNorms are made as the identity.
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
        # Whatever the blocks do, the network begins as zero.
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)


def infer_config(state: dict[str, Tensor], *, heads: int) -> TransformerConfig:
    """The config of official-layout weights, from their tensors alone (heads leave no trace).

    Raises KeyError for a missing tensor, ValueError for blocks of no known design, or a position
    embedding of no grid.
    """
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    out = state["final_layer.linear.weight"].shape[0]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    rows, columns = infer_grid(state["pos_embed"])
    return TransformerConfig(
        input_size=rows * patch,
        input_width=None if rows == columns else columns * patch,
        patch=patch,
        channels=channels,
        out_channels=out // patch**2,
        width=width,
        depth=depth,
        heads=heads,
        num_classes=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        block=_infer_block(state, width),
    )


def infer_grid(pos_embed: Tensor) -> tuple[int, int]:
    """Rows and columns of a position embedding (1, T, d): the grid that gives these values.

    One of other values, learned ones, is a square. Raises ValueError if it can be none.
    """
    _, tokens, width = pos_embed.shape
    for rows in range(1, tokens + 1):
        if tokens % rows == 0:
            grid = rows, tokens // rows
            if torch.allclose(pos_embed.float(), position_embedding(width, *grid), atol=1e-5):
                return grid
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"pos_embed has {tokens} tokens, which are no known grid")
    return side, side


def _infer_block(state: dict[str, Tensor], width: int) -> str:
    """The design whose parameters are those of the first block, by name and shape."""
    prefix = "blocks.0."
    found = {k.removeprefix(prefix): v.shape for k, v in state.items() if k.startswith(prefix)}
    for name, design in BLOCKS.items():
        with torch.device("meta"):
            block = design.block(width, 1)
        if {k: v.shape for k, v in block.state_dict().items()} == found:
            return name
    raise ValueError(f"the parameters of {prefix[:-1]} are those of no known design: {[*found]}")
