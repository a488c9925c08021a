"""``python -m sitcli`` and the ``sit`` command."""

import gc

# Start-up allocates much and frees nothing: without collections help comes a tenth sooner. The
# commands turn them on again.
gc.disable()

from sitcli.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
