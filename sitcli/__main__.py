"""``python -m sitcli`` and the ``sit`` command."""

from sitcli.cli.app import main

if __name__ == "__main__":
    main()
