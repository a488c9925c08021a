"""Autoencoders of diffusers: from a local folder, from the hub or its cache, or from an original
Stable Diffusion checkpoint. The network is used only for a hub name that is not in the cache.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sitcli.autoencoders.base import Autoencoder, Family, wrap_network
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling, wrong_values
from sitcli.machine.quiet import quiet_libraries
from sitcli.text import first_line

KINDS = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny", "AutoencoderDC": "dc"}
HUB_TIMEOUT = 5.0
OFFLINE_HINT = (
    "on a connected machine run `hf download {repo} --local-dir {folder}`, copy the folder here "
    "and give --vae {folder} (or copy the cache and set HF_HOME); --vae pixels and --vae "
    "patch-pca need no download"
)
ORIGINAL_KEY = "encoder.down.0.block.0.conv1.weight"
WEIGHTS = "diffusion_pytorch_model"
# The configuration of the original kl-f8 VAE of Stable Diffusion 1 and 2 (sd-vae-ft-ema, -mse).
SD_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def load_folder(
    folder: Path, *, device: torch.device, dtype: torch.dtype, name: str | None = None
) -> Autoencoder:
    """The autoencoder in a folder with a config.json. Raises SitError if it cannot be loaded.

    name: the hub name it came from; without one the spec keeps the folder's absolute path.
    """
    config = _read_config(folder / "config.json")
    class_name = config.get("_class_name")
    if class_name not in KINDS:
        raise SitError(
            f"{folder} holds a '{class_name}', not an autoencoder that sit knows",
            f"sit knows {', '.join(KINDS)}",
        )
    _quiet()
    import diffusers

    try:
        network, report = getattr(diffusers, class_name).from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises its own, torch's, safetensors' and OSError
        if isinstance(error, ImportError):
            raise
        raise SitError(f"cannot load the autoencoder in {folder}: {first_line(error)}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        raise SitError(f"the weights in {folder} do not fit its config.json")
    return _wrap(network, name or str(folder.resolve()), device=device, dtype=dtype)


def load_hub(name: str, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder OWNER/NAME or OWNER/NAME/FOLDER of the hub, from its cache if it is there.

    Raises SitError within seconds if it is not in the cache and the hub cannot be reached.
    """
    owner, repo_name, *inner = name.split("/")
    repo = f"{owner}/{repo_name}"
    # A whole pipeline keeps its autoencoder in vae/.
    folders = ["/".join(inner) + "/"] if inner else ["", "vae/"]
    folder = _find_cached(repo, folders) or _download(repo, folders)
    return load_folder(folder, name=name, device=device, dtype=dtype)


def folder_in(path: Path) -> Path | None:
    """The folder with a config.json: `path`, or its vae/ as in a whole pipeline; None if none."""
    folders = (path, path / "vae")
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def find_folder(name: str) -> Path | None:
    """The folder of the autoencoder of this name or path, None if it is not on this machine."""
    path = Path(name).expanduser()
    if (folder := folder_in(path)) is not None:
        return folder
    if path.exists() or path.is_absolute() or name.count("/") < 1:
        return None
    owner, repo, *inner = name.removeprefix("hf:").split("/")
    return _find_cached(f"{owner}/{repo}", ["/".join(inner) + "/"] if inner else ["", "vae/"])


def is_original(weights: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors include those of an original (CompVis) KL autoencoder.

    Keys as in ``encoder.down.0.block.0.conv1.weight``, perhaps below ``first_stage_model.``.
    """
    return any(key.endswith(ORIGINAL_KEY) for key in weights)


def load_original(
    path: Path, weights: dict[str, torch.Tensor], *, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    """An original Stable Diffusion 1 or 2 VAE (4 channels, f8, scaling 0.18215).

    The file does not hold its scaling: SDXL's VAE, of the same shape, needs its diffusers folder.
    Raises SitError for an autoencoder of another shape.
    """
    _quiet()
    from diffusers import AutoencoderKL

    prefix = next(
        (p for p in ("first_stage_model.", "vae.") if f"{p}{ORIGINAL_KEY}" in weights), ""
    )
    parts = tuple(prefix + part for part in ("encoder.", "decoder.", "quant_", "post_quant_"))
    weights = {key: value for key, value in weights.items() if key.startswith(parts)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SD_VAE_CONFIG))
        try:
            # Without low_cpu_mem_usage the result does not depend on accelerate being installed.
            network = AutoencoderKL.from_single_file(
                weights, config=folder, local_files_only=True, low_cpu_mem_usage=False
            )
        except (ValueError, RuntimeError, KeyError):  # other shapes
            network = None
    # Diffusers initialises missing tensors at random: every tensor must have come from the file.
    complete = network is not None and len(weights) == len(network.state_dict())
    if not complete:
        raise SitError(
            f"{path} is not a Stable Diffusion 1 or 2 VAE (4 channels, 8 pixels a latent)",
            "use the diffusers folder of this autoencoder, with its config.json",
        )
    return _wrap(network, str(path.resolve()), device=device, dtype=dtype)


def _wrap(network: Any, name: str, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    config, class_name = network.config, type(network).__name__
    kind = KINDS[class_name]
    blocks = config.encoder_block_out_channels if kind != "kl" else config.block_out_channels
    spec = {
        "name": name,
        "class": class_name,
        "kind": kind,
        "latent_channels": config.latent_channels,
        "downsample": 2 ** (len(blocks) - 1),
        "deterministic": kind != "kl",
        **config_scaling(config, config.latent_channels, name).spec(),
    }
    # Some VAEs overflow float16; force_upcast is false for those that do not.
    if dtype == torch.float16 and config.get("force_upcast", True):
        dtype = torch.float32
    return wrap_network(
        network.float(),
        spec,
        encode={"kl": _kl_moments, "tiny": _tiny_latents, "dc": _dc_latents}[kind].__get__(network),
        decode=lambda latents: network.decode(latents).sample,
        device=device,
        dtype=dtype,
    )


def config_scaling(config: Mapping[str, Any], channels: int, name: str) -> Scaling:
    """The scaling that a config.json of diffusers states for latents of so many channels.

    Raises SitError for one that states two shifts, or statistics that are not numbers.
    """
    factor = float(config.get("scaling_factor") or 1.0)
    shift = float(config.get("shift_factor") or 0.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None and std is None:
        return Scaling(factor, shift)
    mean = [0.0] * channels if mean is None else mean
    std = [1.0] * channels if std is None else std
    lists = isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple))
    if (
        not lists
        or not len(mean) == len(std) == channels
        or wrong_values(mean, channels, zero=True)
        or wrong_values(std, channels, zero=False)
    ):
        raise SitError(f"{name}: latents_mean and latents_std are not one number per channel")
    if shift:
        raise SitError(f"{name}: its config.json states both a shift_factor and a latents_mean")
    return Scaling([factor / s for s in std], list(mean))


def _kl_moments(network: Any, images: torch.Tensor) -> torch.Tensor:
    posterior = network.encode(images).latent_dist
    return torch.cat([posterior.mean.float(), posterior.logvar.float().mul(0.5).exp()], dim=1)


def _tiny_latents(network: Any, images: torch.Tensor) -> torch.Tensor:
    return network.encode(images).latents


def _dc_latents(network: Any, images: torch.Tensor) -> torch.Tensor:
    return network.encode(images).latent


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SitError(f"cannot read {path}: {first_line(error)}") from None
    return config if isinstance(config, dict) else {}


def _find_cached(repo: str, folders: list[str]) -> Path | None:
    """The first of the repository's folders with an autoencoder in the hub's cache, or None."""
    _quiet()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for folder in folders:
        try:
            config = try_to_load_from_cache(repo, f"{folder}config.json")
        except HFValidationError as error:
            raise UsageError(f"'{repo}' is not a hub name: {first_line(error)}") from None
        if isinstance(config, str) and any(Path(config).parent.glob(f"{WEIGHTS}*")):
            return Path(config).parent
    return None


def _download(repo: str, folders: list[str]) -> Path:
    """Fetch the autoencoder into the hub's cache and return its folder."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        # Ask for the list of files first: the download's own first request has no time limit.
        files = [f.rfilename for f in HfApi().model_info(repo, timeout=HUB_TIMEOUT).siblings]
        if wanted := _choose_files(files, folders):
            root = snapshot_download(repo, allow_patterns=wanted, etag_timeout=HUB_TIMEOUT)
            return (Path(root) / wanted[0]).parent
    except GatedRepoError:
        raise SitError(
            f"{repo} is gated: the hub gives it only to people who agreed to its terms",
            "agree on its page, then `hf auth login`",
        ) from None
    except RepositoryNotFoundError:
        raise SitError(
            f"the hub has no {repo}, or it is private", "check the name, or `hf auth login`"
        ) from None
    except Exception as error:  # the HTTP library's own kinds, which differ between versions
        raise SitError(
            f"{repo} is not in the hub's cache and cannot be fetched: {first_line(error)}",
            OFFLINE_HINT.format(repo=repo, folder=repo.split("/")[1]),
        ) from error
    raise SitError(f"the hub's {repo} holds no autoencoder of diffusers")


def _choose_files(files: list[str], folders: list[str]) -> list[str]:
    """config.json and the weights, safetensors if there are any, of the first folder with both."""
    for folder in folders:
        for suffix in (".safetensors", ".bin"):
            names = rf"{WEIGHTS}(-\d+-of-\d+)?\{suffix}(\.index\.json)?"
            weights = [f for f in files if re.fullmatch(re.escape(folder) + names, f)]
            if weights and f"{folder}config.json" in files:
                return [f"{folder}config.json", *weights]
    return []


def _quiet() -> None:
    quiet_libraries()
    # The hub's client logs every failed request; sit reports the failure itself, once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


# An original Stable Diffusion VAE, which comes without a config.json.
ORIGINAL = Family(
    in_file=lambda path, weights: is_original(weights),
    in_folder=lambda path: None,
    load=lambda path, weights, *, name, device, dtype: load_original(
        path, weights, device=device, dtype=dtype
    ),
)
# A folder of diffusers, or a file of its weights beside the config.json.
FAMILY = Family(
    in_file=lambda path, weights: (path.parent / "config.json").is_file(),
    in_folder=folder_in,
    load=lambda path, weights, *, name, device, dtype: load_folder(
        path if path.is_dir() else path.parent, device=device, dtype=dtype
    ),
)
