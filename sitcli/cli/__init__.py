"""The command line: options, bars, tables, errors. One thin file per command."""
