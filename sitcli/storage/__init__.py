"""Bytes on a disk, whatever they mean."""
