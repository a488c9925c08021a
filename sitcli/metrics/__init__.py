"""Metrics between sets of feature vectors."""
