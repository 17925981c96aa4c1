"""Measurements for developers: run `python -m tests.benchmarks.<name>` at the repository's root."""

import tests.conftest  # noqa: F401  # makes timm importable beside a torchvision of another build
