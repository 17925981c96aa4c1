"""Mistakes in `reparam/modules/`."""

IN_MODULES = []
