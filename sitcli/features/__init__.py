"""Images to feature vectors and feature maps."""
