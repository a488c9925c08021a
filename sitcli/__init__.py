"""sit: the command-line toolkit for DiT and SiT, diffusion and flow transformers."""

from __future__ import annotations

__version__ = "0.9.0"
