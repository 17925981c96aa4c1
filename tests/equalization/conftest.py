import pytest
import torch


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """The same networks each time."""
    torch.manual_seed(0)
