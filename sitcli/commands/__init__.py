"""The commands: each turns its settings into work, and reports it as events."""
