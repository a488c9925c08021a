"""Files, devices and other libraries: stores, checkpoints, images, autoencoders, features."""
