"""`sit import-latents`: latents of other projects to a latent store."""
