"""What went wrong elsewhere: every defect seen in another library is a test of this one.

The files carry the names of the ways to fail; the docstring of a test names where it was seen.
"""
