"""``python -m sitcli`` and the ``sit`` command."""

from __future__ import annotations

import gc

from sitcli.cli.app import main

# Start-up allocates much and frees nothing: without collections help comes a tenth sooner. The
# commands turn them on again.
gc.disable()


if __name__ == "__main__":
    main()
