"""Attention that replaces a library's own, with the same parameters and the same answers."""
