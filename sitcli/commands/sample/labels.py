"""The label of each image, a function of the settings alone."""

from __future__ import annotations

import numpy as np

from sitcli.errors import UsageError
from sitcli.images.class_names import parse_classes
from sitcli.machine.seeds import Philox, Stream
from sitcli.runs.checkpoint import Checkpoint
from sitcli.settings.sample import SampleSettings


def labels_of(s: SampleSettings, checkpoint: Checkpoint) -> np.ndarray:
    """The label of each image, (N,) int64; a function of the settings alone.

    Raises UsageError for labels that an unconditional model does not have and for unknown classes.
    """
    num_classes = checkpoint.config.num_classes
    if num_classes == 0:
        if s.classes is not None or s.labels != "balanced":
            flag = "classes" if s.classes is not None else "labels"
            raise UsageError(f"--{flag}: this model is unconditional", f"remove --{flag}")
        return np.zeros(s.num, np.int64)
    # Nothing was learned of a class without images.
    empty = checkpoint.latents.get("empty_classes", [])
    classes = np.setdiff1d(np.arange(num_classes), empty)
    if s.classes is not None:
        names = checkpoint.latents["class_names"]
        classes = np.array(parse_classes(s.classes, names, num_classes))
        if untrained := np.intersect1d(classes, empty).tolist():
            raise UsageError(
                f"--classes: class {untrained[0]} had no image when the model was trained",
                "name other classes",
            )
    if s.labels == "balanced":
        return classes[np.arange(s.num) % len(classes)]
    random = Philox(s.seed).draws(Stream.LABELS, np.arange(s.num))
    return classes[random.integers(len(classes)).numpy()]
