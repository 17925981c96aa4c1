"""Whole networks of model libraries."""
