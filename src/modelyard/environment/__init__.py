"""The machine and the environments on it: what is there, what is wrong, what mends it, and the proof that it works."""
