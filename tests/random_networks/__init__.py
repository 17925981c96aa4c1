"""Random networks from the whole vocabulary of real ones, and what a fused one has to keep.

`growing` makes a network from a seed, `programs` shows it as source and makes a failing one
smaller, `checking` asserts the promises, and `python -m tests.random_networks` tries many seeds.
"""
