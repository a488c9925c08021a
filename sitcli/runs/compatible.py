"""Whether a checkpoint and a latent store are of one space, and which labels they share."""

from __future__ import annotations

import numpy as np

from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import Checkpoint
from sitcli.text import format_shape

OWN_LABELS = "their own"


def check_same_latents(store: LatentStore | JoinedStores, checkpoint: Checkpoint) -> None:
    """SitError unless the store's latents are of the kind that the run was trained on."""
    latents, config = checkpoint.latents, checkpoint.config
    shape = config.latent_shape
    if store.latent_shape != shape:
        what = f"latents {format_shape(store.latent_shape)}, and the run's {format_shape(shape)}"
    elif latents["autoencoder"]["hash"] not in (None, store.autoencoder["hash"]):
        what = f"latents of another autoencoder, {store.autoencoder['name']}"
    elif store.scaling != latents["scaling"]:
        what = f"latents scaled by {store.scaling}, and the run's by {latents['scaling']}"
    else:
        return
    like = f"--vae {latents['autoencoder']['name']} does it"
    if latents["store"] is not None:
        like = f"{latents['store']} was encoded"
    raise SitError(f"{store.path} holds {what}", f"encode the images as {like}")


def known_labels(
    labels: np.ndarray, class_names: list[str], checkpoint: Checkpoint
) -> tuple[np.ndarray, str]:
    """The run's class numbers for images of these labels (n,) and classes, and where they are from.

    The second is OWN_LABELS if every class is one of the run's, by name; else the numbers are the
    null class, and it says why.
    """
    num_classes, known = checkpoint.config.num_classes, checkpoint.latents["class_names"]
    if num_classes == 0:
        return np.zeros(len(labels), np.int64), "none, as the model has none"
    if class_names and set(class_names) <= set(known):
        return np.array([known.index(name) for name in class_names])[labels], OWN_LABELS
    # A run that does not know its classes' names has them in order.
    if len(class_names) == num_classes and not known:
        return np.array(labels), OWN_LABELS
    why = "the images' are not the run's" if class_names else "the images have none"
    return np.full(len(labels), checkpoint.config.null_class), f"the null class, as {why}"


def check_null_class(checkpoint: Checkpoint, policy: str, hint: str) -> None:
    """UsageError if the null class, which `policy` says is used, was never trained."""
    if checkpoint.config.num_classes and checkpoint.meta.get("label_dropout") == 0:
        raise UsageError(f"labels: {policy}, which --label-dropout 0 never trained", hint)
