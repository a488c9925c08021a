"""`sit encode-latents`: images to a latent store."""
