"""Gives a network statistics and scales at which no mistake can hide, as `reparam verify` does."""

from reparam.cli.models.randomising import is_batch_norm, randomise_batch_norm

__all__ = ["is_batch_norm", "randomise_batch_norm"]
