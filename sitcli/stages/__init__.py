"""One file per command: generators that do the work and yield progress events."""
