"""Names of the Hugging Face hub where a path is: hf:OWNER/NAME, or a file or folder within it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sitcli.errors import SitError, UsageError
from sitcli.text import first_line

NAME = re.compile(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?")


def local_path(path: Path | str) -> Path:
    """`path` itself, or for hf:OWNER/NAME[/INNER] where huggingface_hub keeps it here.

    Fetched with its cache and its progress bar, INNER alone if it is named.
    Raises UsageError for a name that is none, SitError if it cannot be had.
    """
    text = str(path)
    if not text.startswith("hf:"):
        return Path(path)
    match = NAME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text} is not a name of the hub", "use hf:OWNER/NAME, e.g. hf:facebook/DiT-XL-2-256"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    name, inner = match.groups()
    patterns = [inner, f"{inner}/*"] if inner else None
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise SitError(
            f"the hub has no {name}, or it is private", "check the name, or `hf auth login`"
        ) from None
    except Exception as error:  # the network's, the hub's and the disk's own kinds
        missing = isinstance(error, LocalEntryNotFoundError)
        reason = "it is not in the hub's cache, and there is no network"
        folder = name.split("/")[1]
        raise SitError(
            f"cannot fetch {text}: {reason if missing else first_line(error)}",
            f"fetch it elsewhere, `hf download {name} --local-dir {folder}`, and give the folder",
        ) from None
    if inner and not (folder / inner).exists():
        raise SitError(f"the hub's {name} holds no {inner}")
    return folder / inner if inner else folder
