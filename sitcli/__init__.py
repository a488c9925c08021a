"""sit: the command-line toolkit for DiT and SiT, diffusion and flow transformers."""

__version__ = "0.6.0"
