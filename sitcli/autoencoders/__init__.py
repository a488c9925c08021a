"""Autoencoders: images to latents and back."""
