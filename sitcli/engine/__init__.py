"""DeepSpeed: engines, their configuration, their state."""
