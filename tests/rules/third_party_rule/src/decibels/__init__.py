"""A layer that works without reparam, and does not import it."""

from decibels.gain import Gain

__all__ = ["Gain"]
