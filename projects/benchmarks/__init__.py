"""Slow, plain versions of the methods and the timings against them; nothing in the package imports this."""
