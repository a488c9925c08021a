"""InceptionV3 as ADM and torch-fidelity use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sitcli.errors import SitError
from sitcli.features.base import Extractor, Kind
from sitcli.storage.untrusted import named_tensors, read_content
from sitcli.text import first_line

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # first digits of the file's sha256, as torch.hub tags its files
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)


def load_inception(path: Path, device: torch.device, layers: Sequence[str]) -> Extractor:
    """The extractor of `layers`: pool (B, 2048), and spatial, ADM's layer for sFID.

    Raises SitError if the file at `path` does not hold InceptionV3's weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity would run code in the file: check first that it holds tensors only.
        if not named_tensors(read_content(path)):
            raise SitError("there are no named tensors")
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    except (
        Exception
    ) as error:  # torch raises a dozen types for a file that is not what it should be
        raise SitError(
            f"{path} does not hold InceptionV3's weights: {first_line(error)}",
            f"the official file is {INCEPTION_URL}",
        ) from None
    # channels_last is a third to a half faster on a CPU.
    network = network.to(device).to(memory_format=torch.channels_last)
    spatial: list[torch.Tensor] = []
    if "spatial" in layers:
        # ADM's sFID: the first 7 channels of the mixed_6 convolution, flattened in NHWC order.
        network.Mixed_6d.branch1x1.register_forward_hook(
            lambda module, given, output: spatial.append(
                output[:, :7].permute(0, 2, 3, 1).flatten(1).float().cpu()
            )
        )

    def extract(images: torch.Tensor) -> dict[str, torch.Tensor]:
        # TF32 would change features in the third digit.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = {"pool": network(images.to(device))[0].cpu()}
        if spatial:
            found["spatial"] = spatial.pop()
        return {layer: found[layer] for layer in layers}

    def logits(pool: torch.Tensor) -> torch.Tensor:
        # Without the bias, as in the original graph of the Inception Score.
        return pool @ network.fc.weight.detach().float().cpu().T

    return Extractor(extract, logits=logits)


KIND = Kind(
    load_inception,
    title="InceptionV3",
    file=INCEPTION_FILE,
    url=INCEPTION_URL,
    option="--features-weights",
    facts=dict(
        layers=("pool", "spatial"), resizes=True, has_classes=True, official_hash=INCEPTION_HASH
    ),
)
