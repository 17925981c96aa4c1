"""Blocks of the literature in the form that they are trained in, one file per family."""
