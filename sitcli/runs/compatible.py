"""Whether a checkpoint and a latent store fit together, and which labels they share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import Checkpoint
from sitcli.storage.files import hash_json
from sitcli.text import format_shape

OWN_LABELS = "their own"


def difference_from_trained(store: LatentStore | JoinedStores, latents: dict[str, Any]) -> str:
    """What tells the store from the one that a run was trained on, "" if nothing does.

    latents: the facts that the run's checkpoint keeps. A store that was encoded again is the same
    if its images, its autoencoder and all its latents and labels are. Runs of versions up to 0.7
    keep no checksum of these.
    """
    # A store of the same images made since has a fingerprint of another kind.
    if latents["fingerprint"] not in (store.fingerprint, store.first_fingerprint):
        return "of other images, or made with another autoencoder, size, crop or flips"
    if latents.get("checksum", store.written_checksum) != store.written_checksum:
        return "with other values: its checksum is not that of the run"
    if store.scaling != (trained := Scaling.of(latents)):
        return f"scaled by {store.scaling}, not {trained}"
    return ""


def has_grown(store: LatentStore | JoinedStores, latents: dict[str, Any]) -> bool:
    """Whether the store, before images were added to it, was what a run was trained on.

    latents: as in `difference_from_trained`.
    """
    known = latents["fingerprint"], latents.get("checksum")
    parts = store.parts if isinstance(store, JoinedStores) else [store]
    then = [[(part.fingerprint, part.written_checksum), *part.was] for part in parts]
    for each in itertools.product(*then):
        prints, sums = zip(*each, strict=True)
        if len(parts) == 1:
            found = prints[0], sums[0]
        else:
            found = hash_json(list(prints)), hash_json(list(sums))
        if found == known:
            return True
    return False


def check_same_latents(store: LatentStore | JoinedStores, checkpoint: Checkpoint) -> None:
    """Raise SitError unless the store's latents are of the kind the run was trained on."""
    latents, config = checkpoint.latents, checkpoint.config
    shape = config.latent_shape
    if store.latent_shape != shape:
        what = (
            f"latents {format_shape(store.latent_shape)}, but the run needs {format_shape(shape)}"
        )
    elif _differ(latents["autoencoder"]["hash"], store.autoencoder["hash"]):
        what = f"latents of another autoencoder, {store.autoencoder['name']}"
    elif store.scaling != checkpoint.scaling:
        what = f"latents scaled by {store.scaling}, but the run needs {checkpoint.scaling}"
    else:
        return
    like = f"with --vae {latents['autoencoder']['name']}"
    if latents["store"] is not None:
        like = f"as {latents['store']} was encoded"
    raise SitError(f"{store.path} holds {what}", f"encode the images {like}")


def _differ(first: str | None, second: str | None) -> bool:
    """Whether two hashes are known and not equal: imported weights and latents have none."""
    return None not in (first, second) and first != second


def known_labels(
    labels: np.ndarray, class_names: list[str], checkpoint: Checkpoint
) -> tuple[np.ndarray, str]:
    """The run's class numbers (n,) for images with these labels (n,) and classes, and their origin.

    The origin is OWN_LABELS if every class is one of the run's, by name. Otherwise all numbers are
    the null class, and the origin says why.
    """
    num_classes, known = checkpoint.config.num_classes, checkpoint.latents["class_names"]
    if num_classes == 0:
        return np.zeros(len(labels), np.int64), "none, as the model has none"
    if class_names and set(class_names) <= set(known):
        return np.array([known.index(name) for name in class_names])[labels], OWN_LABELS
    # A run that does not know its classes' names has them in order, and so have images whose
    # classes are called by their numbers, as by a dataset.json.
    numbers = [str(i) for i in range(num_classes)]
    if len(class_names) == num_classes and (not known or class_names == numbers):
        return np.array(labels), OWN_LABELS
    why = "the images' are not the run's" if class_names else "the images have none"
    return np.full(len(labels), checkpoint.config.null_class), f"the null class, as {why}"


def check_null_class(checkpoint: Checkpoint, policy: str, hint: str) -> None:
    """Raise UsageError if the null class was never trained.

    policy: the text that says that the null class is used; hint: the error's hint.
    """
    if checkpoint.config.num_classes and checkpoint.meta.get("label_dropout") == 0:
        raise UsageError(f"labels: {policy}, but --label-dropout 0 did not train it", hint)
