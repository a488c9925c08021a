"""This computer: devices, processes, signals, seeds."""
