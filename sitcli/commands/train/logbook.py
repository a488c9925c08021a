"""What a run tells while it trains: log lines, the loss curve, grids of samples."""

from __future__ import annotations

GRID_IMAGES, GRID_STEPS = 16, 20
