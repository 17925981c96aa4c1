"""All blocks."""

from tests.models import (
    computed_kernels,
    concatenations,
    diverse_branch,
    large_kernels,
    mobile,
    pairs,
    partitions,
    repvgg,
    scales,
    super_resolution,
    transformers,
)

FAMILIES = (
    pairs,
    repvgg,
    mobile,
    large_kernels,
    diverse_branch,
    super_resolution,
    computed_kernels,
    transformers,
    scales,
    partitions,
    concatenations,
)

BLOCKS = [block for family in FAMILIES for block in family.BLOCKS]
