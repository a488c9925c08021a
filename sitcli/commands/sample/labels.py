"""The label of each image, a function of the settings alone."""

from __future__ import annotations

import numpy as np

from sitcli.errors import UsageError
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
        classes = np.array(
            _parse_classes(s.classes, num_classes, checkpoint.latents["class_names"])
        )
        if untrained := np.intersect1d(classes, empty).tolist():
            raise UsageError(
                f"--classes: class {untrained[0]} had no image when the model was trained",
                "name other classes",
            )
    if s.labels == "balanced":
        return classes[np.arange(s.num) % len(classes)]
    random = Philox(s.seed).draws(Stream.LABELS, np.arange(s.num))
    return classes[random.integers(len(classes)).numpy()]


def _parse_classes(text: str, num_classes: int, class_names: list[str]) -> list[int]:
    """'207,goldfish' -> class numbers. Raises UsageError for an unknown number or name."""
    import difflib

    classes = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word in class_names:
            classes.append(class_names.index(word))
        elif word.isdecimal():
            if int(word) >= num_classes:
                raise UsageError(
                    f"--classes: there is no class {word}", f"use 0 to {num_classes - 1}"
                )
            classes.append(int(word))
        else:
            close = difflib.get_close_matches(word, class_names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"e.g. {', '.join(class_names[:5])}"
            raise UsageError(f"--classes: no class is called '{word}'", hint)
    if not classes:
        raise UsageError("--classes names no class", "e.g. --classes 0,1")
    return classes
