"""Autoencoders of diffusers: from a local folder, from the hub or its cache.

The network is used only for a hub name that is not in the cache.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from sitcli.autoencoders.base import Autoencoder, Family, wrap_network
from sitcli.autoencoders.diffusers_classes import ROWS
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from sitcli.machine.quiet import quiet_libraries
from sitcli.text import first_line

HUB_TIMEOUT = 5.0
OFFLINE_HINT = (
    "on a connected machine run `hf download {repo} --local-dir {folder}`, copy the folder here "
    "and give --vae {folder} (or copy the cache and set HF_HOME); --vae pixels and --vae "
    "patch-pca need no download"
)
WEIGHTS = "diffusion_pytorch_model"


def load_folder(
    folder: Path, *, device: torch.device, dtype: torch.dtype, name: str | None = None
) -> Autoencoder:
    """The autoencoder in a folder with a config.json. Raises SitError if it cannot be loaded.

    name: the hub name it came from; without one the spec keeps the folder's absolute path.
    """
    config = _read_config(folder / "config.json")
    class_name = config.get("_class_name")
    if class_name not in ROWS:
        raise SitError(
            f"{folder} holds a '{class_name}', not an autoencoder that sit knows",
            f"sit knows {', '.join(ROWS)}",
        )
    quiet()
    import diffusers

    if not hasattr(diffusers, class_name):
        raise SitError(
            f"{folder} holds an {class_name}, which diffusers has from version "
            f"{ROWS[class_name].since} on, and this is {diffusers.__version__}",
            f"pip install 'diffusers>={ROWS[class_name].since}'",
        )
    try:
        network, report = getattr(diffusers, class_name).from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises its own, torch's, safetensors' and OSError
        if lacks_transformers(class_name):
            raise SitError(
                f"{folder} holds an {class_name}, whose encoder is one of transformers, which is "
                "not installed",
                "pip install transformers",
            ) from None
        if isinstance(error, ImportError):
            raise
        raise SitError(f"cannot load the autoencoder in {folder}: {first_line(error)}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        raise SitError(f"the weights in {folder} do not fit its config.json")
    return wrap(network, name or str(folder.resolve()), device=device, dtype=dtype)


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


def wrap(
    network: Any,
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    scaling: Scaling | None = None,
) -> Autoencoder:
    """The Autoencoder around a network of one of the classes in ROWS.

    name: for its spec; scaling: None for the one its config states.
    """
    config, class_name = network.config, type(network).__name__
    row = ROWS[class_name]
    spec = {
        "name": name,
        "class": class_name,
        "kind": row.kind,
        "latent_channels": row.channels(config),
        "downsample": row.downsample(config),
        "deterministic": row.deterministic,
        **(scaling or row.scaling(network, name)).spec(),
    }
    if (size := row.image_size(network)) is not None:
        spec["image_size"] = size
    # Some VAEs overflow float16; force_upcast is false for those that do not.
    if dtype == torch.float16 and config.get("force_upcast", True):
        dtype = torch.float32
    return wrap_network(
        network.float(),
        spec,
        encode=row.encode.__get__(network),
        decode=row.decode.__get__(network),
        device=device,
        dtype=dtype,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SitError(f"cannot read {path}: {first_line(error)}") from None
    return config if isinstance(config, dict) else {}


def _find_cached(repo: str, folders: list[str]) -> Path | None:
    """The first of the repository's folders with an autoencoder in the hub's cache, or None."""
    quiet()
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


def lacks_transformers(class_name: str) -> bool:
    """Whether a class needs the library transformers, and it is not there."""
    return ROWS[class_name].transformers and importlib.util.find_spec("transformers") is None


def quiet() -> None:
    """Keep the warnings of diffusers and of the hub's client from the user."""
    quiet_libraries()
    # The hub's client logs every failed request; sit reports the failure itself, once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


# A folder of diffusers, or a file of its weights beside the config.json.
FAMILY = Family(
    in_file=lambda path, weights: (path.parent / "config.json").is_file(),
    in_folder=folder_in,
    load=lambda path, weights, *, name, device, dtype: load_folder(
        path if path.is_dir() else path.parent, device=device, dtype=dtype
    ),
)
