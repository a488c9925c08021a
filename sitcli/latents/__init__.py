"""Latent stores, one or several read as one."""
