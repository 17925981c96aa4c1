"""Deliberate mistakes, planted one at a time in a copy of the package: do the tests notice?

`mistakes` lists them as patches of a few lines, with a file for each room, `planting` applies them
and runs the tests, and `python -m tests.mutations` does so for all. The working tree is never
touched.
"""
