"""Fuses networks of `transformers`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reparam
from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.transformers_networks import TRANSFORMERS_NETWORKS
from tests.support.errors import FLOAT64_BOUND, relative_errors, run


@pytest.fixture(scope="module", params=each(TRANSFORMERS_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestTransformers(NetworkTests):
    def test_hidden_states_are_equal(self, fusion: Fusion) -> None:
        ours, exact = (
            call(one, fusion, output_hidden_states=True) for one in (fusion.fused, fusion.model)
        )
        assert any("hidden_states" in name and exact[name] is not None for name in exact)
        assert max(relative_errors(ours, exact)) <= FLOAT64_BOUND

    def test_tuples_are_equal(self, fusion: Fusion) -> None:
        ours, exact = (call(one, fusion, return_dict=False) for one in (fusion.fused, fusion.model))
        assert isinstance(exact, tuple)
        assert max(relative_errors(ours, exact)) <= FLOAT64_BOUND

    def test_what_was_saved_fits_a_fused_network(self, fusion: Fusion, tmp_path: Path) -> None:
        model: Any = fusion.model
        fused: Any = fusion.fused
        assert fused.config.to_dict() == model.config.to_dict()
        fused.save_pretrained(tmp_path, save_original_format=False)  # with the names of today
        saved = load_file(tmp_path / "model.safetensors")
        fresh = reparam.fuse(type(model)(model.config).eval().double())
        found = fresh.load_state_dict(saved, strict=False)
        assert not found.unexpected_keys
        tied = fused.all_tied_weights_keys
        assert not [name for name in found.missing_keys if name not in tied]
        output, exact = (run(one, fusion.inputs) for one in (fresh, fused))
        assert max(relative_errors(output, exact)) <= FLOAT64_BOUND


def call(model: Any, fusion: Fusion, **options: bool) -> Any:
    """The outputs with options that only the model's own code knows."""
    with torch.no_grad():
        return deepcopy(model)(*deepcopy(fusion.inputs), **options)
