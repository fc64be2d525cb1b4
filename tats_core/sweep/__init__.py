"""Sweeps: many runs of one pipeline that differ in a few keys, and what came out of them."""
