"""The shape of a transformer: the published sizes, and a configuration's fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sitcli.model.blocks import BLOCKS, MLPS, NORMS, QK_NORMS, Style

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
    channels; num_classes: 0 is unconditional; block: one of BLOCKS.

    Beyond the papers: mlp, norm, qk_norm, qk_kind, mlp_eps: see `Style`; rope: turn queries and
    keys by their positions, see `rotary_embedding`. own_embedders: every block has embedders of
    time and label of its own, with diffusers' frequencies, and the final layer the first block's.
    aux_block: an auxiliary final layer reads the tokens after so many blocks, 0: there is none.
    align_block, align_width: a projector reads them for features of so many channels.
    Raises ValueError for sizes that do not fit together.
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
    mlp: str = "gelu"
    norm: str = "layer"
    qk_norm: bool = False
    rope: bool = False
    aux_block: int = 0
    align_block: int = 0
    align_width: int = 0
    qk_kind: str = "rms"
    mlp_eps: float = Style().mlp_eps
    own_embedders: bool = False

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"no block design is called '{self.block}'")
        if self.mlp not in MLPS or self.norm not in NORMS or self.qk_kind not in QK_NORMS:
            raise ValueError(
                f"no parts of a block are called '{self.mlp}', '{self.norm}' and '{self.qk_kind}'"
            )
        if self.own_embedders and not BLOCKS[self.block].vectors:
            raise ValueError(f"blocks of design {self.block} have no embedders of their own")
        for side in self.latent_shape[1:]:
            if side % self.patch:
                raise ValueError(f"patch {self.patch} does not divide the latent side {side}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        if self.width % 4:
            raise ValueError(f"the width {self.width} is not a multiple of 4")
        if self.rope and self.width // self.heads % 4:
            raise ValueError(
                f"rotary embedding takes heads of a multiple of 4 channels, not {self.width} / "
                f"{self.heads}"
            )
        for name, block in (("auxiliary", self.aux_block), ("aligned", self.align_block)):
            if not 0 <= block < self.depth:
                raise ValueError(f"the {name} block {block} is none of the first {self.depth - 1}")
        if bool(self.align_block) != bool(self.align_width) or self.align_width < 0:
            raise ValueError("a projector needs both its block and its features' width")

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
        """The number of the image's tokens."""
        rows, columns = self.grid
        return rows * columns

    @property
    def style(self) -> Style:
        """The parts of its blocks."""
        return Style(self.mlp, self.norm, self.qk_norm, self.qk_kind, self.mlp_eps)

    @property
    def backbone(self) -> TransformerConfig:
        """Without what only training, or internal guidance, looks at."""
        return replace(self, aux_block=0, align_block=0, align_width=0)

    @property
    def beyond(self) -> list[str]:
        """What sets it apart from the papers' networks, in words."""
        parts = [MLPS[self.mlp].words, NORMS[self.norm].words]
        parts += [QK_NORMS[self.qk_kind].words * self.qk_norm, "RoPE" * self.rope]
        parts += ["embedders in every block" * self.own_embedders]
        parts += [f"eps {self.mlp_eps:g} before the MLP" * (self.mlp_eps != Style().mlp_eps)]
        return [words for words in parts if words]

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


# REPA's projector has 2048 hidden channels; narrow networks get one as narrow.
PROJECTOR_WIDTH = 2048


def projector_width(config: TransformerConfig) -> int:
    """Hidden channels of the projector: 2048 (REPA), twice the network's where that is less."""
    return min(PROJECTOR_WIDTH, 2 * config.width)
