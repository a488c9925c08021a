"""`sit evaluate`: figures of samples against real images."""
