"""Randomness that is the same everywhere, and maps that occur once."""
