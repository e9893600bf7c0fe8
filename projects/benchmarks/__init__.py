"""Slow, plain versions of the methods, and timings against them; nothing in the package imports this."""
