"""WEIGHTS.sit.safetensors beside weights in an official layout: the rest that a run has.

An official file is a state dict and nothing else. The sidecar keeps the run's meta.json, the
autoencoder's arrays, and the tensors that the layout holds changed, as they were in the run: with
both files `sit import` restores the run's own network and facts. Official code sees one file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sitcli.model.config import TransformerConfig
from sitcli.runs.meta import written_fields
from sitcli.storage.files import hash_file, replacing
from sitcli.storage.tensors import write_tensors
from sitcli.storage.untrusted import named_tensors, read_content, read_metadata
from sitcli.weights.official import AUTOENCODER
from sitcli.weights.read import SIDECAR, Found, check_bytes, exported_meta

METADATA = "sit-beside"  # not the key of whole exports: it holds some of the tensors


def sidecar_of(path: Path) -> Path:
    """mine.pt -> mine.pt.sit.safetensors."""
    return path.with_name(path.name + SIDECAR)


def write_sidecar(
    weights: Path, out: Path, *, meta: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write the sidecar of the weights that are at the path `weights` and will be at `out`.

    meta: the checkpoint's, with `exported_weights`; tensors: those that the weights hold changed,
    and the autoencoder's arrays. Raises OSError.
    """
    text = json.dumps(meta | {"beside": hash_file(weights)})
    with replacing(sidecar_of(out)) as temporary:
        write_tensors(temporary, tensors, metadata={METADATA: text, "format": "pt"})


def with_sidecar(found: Found) -> tuple[Found, str]:
    """What was found in a file, as its sidecar completes it, and a note.

    The note is "" if there is no sidecar; it says so if the sidecar was written beside another
    file, and is not used then.
    Raises SitError for a sidecar that is damaged.
    """
    path = sidecar_of(found.path)
    if not path.is_file():
        return found, ""
    check_bytes(path)
    meta = exported_meta(path, read_metadata(path).get(METADATA))
    if meta.pop("beside", None) != hash_file(found.path):
        return found, f"{path} was written beside other weights, and is not used"
    # An official layout has no place for the heads that training adds.
    meta["transformer"] = written_fields(TransformerConfig(**meta["transformer"]).backbone)
    tensors = named_tensors(read_content(path))
    arrays = {
        key.removeprefix(AUTOENCODER): tensors.pop(key)
        for key in list(tensors)
        if key.startswith(AUTOENCODER)
    }
    (state,) = found.states.values()
    completed = replace(
        found,
        states={meta["exported_weights"]: state | tensors},
        step=meta["step"],
        meta=meta,
        arrays=arrays,
    )
    return completed, f"the run's own facts and tensors are those of {path}"
