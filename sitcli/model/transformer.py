"""The DiT/SiT transformer: presets, forward pass and initialisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sitcli.model.blocks import BLOCKS, Modulation
from sitcli.model.config import TransformerConfig, projector_width
from sitcli.model.embed import (
    LabelEmbedder,
    PatchEmbed,
    Rope,
    TimestepEmbedder,
    position_embedding,
    rotary_embedding,
)


class Route(NamedTuple):
    """TREAD's token routing (Krause et al. 2025): only some tokens pass through some blocks.

    tokens_kept: (B, K) int64, the image's tokens that do; start, stop: the others skip blocks
    start .. stop - 1, and join again as they were.
    """

    tokens_kept: Tensor
    start: int
    stop: int


AUX, ALIGN = "aux", "align"


class Transformer(nn.Module):
    """The network of DiT (section 3) and SiT: latents, times and labels to a prediction.

    State-dict keys and layouts are those of the official releases. With num_classes 0 the label
    table has one row, the null class.

    checkpoint_every: n recomputes the first of every n blocks in the backward pass, instead of
    keeping its activations; 0 keeps those of all blocks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_every = 0
        self.design = BLOCKS[config.block]
        self.x_embedder = PatchEmbed(config.patch, config.channels, config.width)
        self.t_embedder, self.y_embedder = self._embedders()
        # A buffer under the official key: ZeRO-1 consolidation loses frozen parameters.
        self.register_buffer("pos_embed", position_embedding(config.width, *config.grid))
        self.blocks = nn.ModuleList(
            self.design.block(config.width, config.heads, config.style) for _ in range(config.depth)
        )
        final = config.width, config.patch, config.out_channels, config.norm
        self.final_layer = self.design.final(*final)
        if config.aux_block:
            self.aux_final_layer = self.design.final(*final)
        if config.align_block:
            hidden = projector_width(config)
            # REPA's keys: `projectors.0.0.weight`, ...
            projector = nn.Sequential(
                nn.Linear(config.width, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, config.align_width),
            )
            self.projectors = nn.ModuleList([projector])
        self.modulation: Modulation | None = None  # of all blocks, after `modulate_at_once`
        self.initialize()

    def _embedders(self) -> tuple[nn.Module, nn.Module]:
        """The embedders of times and labels, or lists of them with one for each block."""
        config = self.config
        if not config.own_embedders:
            return TimestepEmbedder(config.width), LabelEmbedder(config.num_classes, config.width)
        blocks = range(config.depth)
        times = (TimestepEmbedder(config.width, last=True) for _ in blocks)
        labels = (LabelEmbedder(config.num_classes, config.width) for _ in blocks)
        return nn.ModuleList(times), nn.ModuleList(labels)

    def modulate_at_once(self) -> None:
        """Make the modulation of all blocks one product of the condition, for evaluation alone.

        This removes the blocks' own layers and their state-dict keys. Nothing is done where blocks
        have conditions of their own.
        """
        if self.design.vectors and not self.config.own_embedders:
            self.modulation = Modulation([b.adaLN_modulation[1] for b in self.blocks])
            for block in self.blocks:
                block.adaLN_modulation = nn.Identity()  # the block gets its part of the product

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        route: Route | None = None,
        taps: tuple[int | str, ...] = (),
    ) -> Tensor | tuple[Tensor, dict[int | str, Tensor]]:
        """x (B, C, h, w), t (B,), y (B,) int64 -> (B, C_out, h, w); with taps, also their values.

        taps: n gives the tokens (B, T, d) after n blocks, where tokens that skip blocks are as
        before them; AUX gives the auxiliary head's output (B, C_out, h, w); ALIGN gives the
        projector's output (B, T, D).
        """
        config, found = self.config, {}
        tokens = self.x_embedder(x) + self.pos_embed  #           (B, T, d)
        tokens, c, conditions = self._condition(tokens, t, y)
        rope = all_rope = self._rope(x.device)
        depth = len(self.blocks)
        parts = self.modulation(c).chunk(depth, dim=1) if self.modulation else conditions
        whole = None  # all tokens, while some of them skip blocks
        for i, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            if route is not None and i == route.start:
                tokens_kept = self._with_appended(route.tokens_kept)
                whole, tokens = tokens, gather_tokens(tokens, tokens_kept)
                rope = all_rope and all_rope.of(tokens_kept)
            if route is not None and i == route.stop:
                tokens, rope, whole = scatter_tokens(whole, tokens_kept, tokens), all_rope, None
            if self.checkpoint_every and i % self.checkpoint_every == 0:
                # Nothing in a block is random, so that no generator's state need be kept.
                tokens = checkpoint(
                    block, tokens, part, rope, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens = block(tokens, part, rope)
            here = [tap for tap in taps if self._block_of(tap) == i + 1]
            if here:
                waiting = whole is not None
                seen = scatter_tokens(whole, tokens_kept, tokens) if waiting else tokens
                found |= {tap: self._tap(tap, seen[:, : config.tokens], c) for tap in here}
        if whole is not None:
            tokens = scatter_tokens(whole, tokens_kept, tokens)
        tokens = tokens[:, : config.tokens]  #                    (B, T, d), none of the appended
        tokens = self.final_layer(tokens, c)  #                   (B, T, p*p*C_out)
        output = self.unpatchify(tokens)  #                       (B, C_out, h, w)
        return (output, found) if taps else output

    def _condition(
        self, tokens: Tensor, t: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """The tokens as the design's blocks take them, what the final layer gets beside them, and
        what each block gets, from times and labels (B,).
        """
        if self.config.own_embedders:
            pairs = zip(self.t_embedder, self.y_embedder, strict=True)
            own = [time(t) + label(y) for time, label in pairs]  #  (B, d) each
            return tokens, own[0], own
        time, label = self.t_embedder(t), self.y_embedder(y)  #     (B, d) each
        tokens, c = self.design.condition(tokens, time, label)
        return tokens, c, [c] * len(self.blocks)

    def two_headed(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the auxiliary head's, from one evaluation."""
        output, found = self(x, t, y, taps=(AUX,))
        return output, found[AUX]

    def _block_of(self, tap: int | str) -> int:
        """The number of blocks after which the tap is read."""
        blocks = {AUX: self.config.aux_block, ALIGN: self.config.align_block}
        return blocks.get(tap, tap)

    def _tap(self, tap: int | str, tokens: Tensor, c: Tensor | None) -> Tensor:
        if tap == AUX:
            return self.unpatchify(self.aux_final_layer(tokens, c))
        return self.projectors[0](tokens) if tap == ALIGN else tokens

    def _rope(self, device: torch.device) -> Rope | None:
        config = self.config
        if not config.rope:
            return None
        width = config.width // config.heads
        return rotary_embedding(width, *config.grid, self.design.appended, device)

    def _with_appended(self, tokens_kept: Tensor) -> Tensor:
        """The tokens kept (B, K) and the design's appended tokens, which skip nothing."""
        if not self.design.appended:
            return tokens_kept
        last = torch.arange(self.design.appended, device=tokens_kept.device) + self.config.tokens
        return torch.cat([tokens_kept, last.expand(len(tokens_kept), -1)], dim=1)

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
        embedders = [*self.y_embedder.modules(), *self.t_embedder.modules()]
        for module in embedders:  # in this order, in which a seed has always given their values
            if isinstance(module, LabelEmbedder):
                nn.init.normal_(module.embedding_table.weight, std=0.02)
            if isinstance(module, TimestepEmbedder):
                nn.init.normal_(module.mlp[0].weight, std=0.02)
                nn.init.normal_(module.mlp[2].weight, std=0.02)
        # Nothing is modulated at first: an adaLN block begins as a plain one, and with the gates of
        # adaLN-Zero as the identity. Affine LayerNorms are made as the identity.
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
        # Whatever the blocks do, the network begins as zero.
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)
        if self.config.aux_block:
            nn.init.zeros_(self.aux_final_layer.linear.weight)


def weightless(config: TransformerConfig) -> Transformer:
    """The network without memory for its weights: for their names and shapes."""
    with torch.device("meta"):
        return Transformer(config)


def tensor_shapes(config: TransformerConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of the network's state dict."""
    return {name: tensor.shape for name, tensor in weightless(config).state_dict().items()}


def parameter_sizes(config: TransformerConfig) -> dict[str, int]:
    """The number of elements of every parameter of the network."""
    return {name: p.numel() for name, p in weightless(config).named_parameters()}


def gather_tokens(tokens: Tensor, tokens_kept: Tensor) -> Tensor:
    """Tokens (B, T, d) at tokens_kept (B, K) -> (B, K, d)."""
    return tokens.gather(1, tokens_kept[..., None].expand(-1, -1, tokens.shape[-1]))


def scatter_tokens(tokens: Tensor, tokens_kept: Tensor, values: Tensor) -> Tensor:
    """Tokens (B, T, d) with values (B, K, d) at tokens_kept (B, K); a new tensor."""
    index = tokens_kept[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.scatter(1, index, values.to(tokens.dtype))
