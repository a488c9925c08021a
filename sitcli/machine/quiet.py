"""Keeping other libraries quiet."""

from __future__ import annotations

import logging
import os
import warnings

NOISY = (
    *("deepspeed", "DeepSpeed", "diffusers", "transformers", "torch", "PIL"),
    "torch.utils.cpp_extension",  # inductor asks it for CUDA, and on a CPU it complains
)


def quiet_libraries() -> None:
    """Silence what libraries print that no user of ours can act on; call before importing them."""
    if os.environ.get("SIT_DEBUG") == "1":
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
