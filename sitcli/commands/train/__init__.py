"""`sit train`: a latent store to a run directory."""
