"""Latent stores and the batches that training reads from them."""
