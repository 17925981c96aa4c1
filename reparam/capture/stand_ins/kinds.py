"""What kind of value a proxy stands for, told to code that asks for it while it is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture.stand_ins.proxies import (
    Attribute,
    ConstantProxy,
    Proxy,
    comes_of_tensors,
    is_tensor,
    keys_after,
    made_of_one_value,
)
from reparam.capture.trace import Call
from reparam.modules import fetch

_TENSOR_IN_TENSOR_OUT = (
    "activation batchnorm channelshuffle conv dropout flatten fold instancenorm linear "
    "normalization padding pixelshuffle pooling sparse upsampling"
)

_RETURN_A_TENSOR = {
    kind
    for name in _TENSOR_IN_TENSOR_OUT.split()
    for kind in vars(getattr(nn.modules, name)).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.MultiheadAttention
}

_ATTRIBUTES: dict[str, type] = {
    "shape": torch.Size,
    "dtype": torch.dtype,
    "device": torch.device,
    "ndim": int,
}


class Kinds:
    """The kinds of the values of one trace; whatever is assumed of one, the new code checks.

    Args:
        tracer: The tracer.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def class_of(self, proxy: fx.Proxy) -> type:
        """The class that a value has for code that asks for it, if that is certain."""
        node = proxy.node if type(proxy) is not Attribute else None
        if isinstance(proxy, ConstantProxy):
            return proxy.kind
        if isinstance(proxy, Attribute) and proxy.attr in _ATTRIBUTES:
            return _ATTRIBUTES[proxy.attr]
        if node is not None and comes_of_tensors(node, self.is_tensor):
            return Tensor
        if node is not None and (kind := self._tracer.constants.size(node, type)) is not None:
            return Tensor if issubclass(kind, Tensor) else kind
        chain = [] if node is None else made_of_one_value(node)
        named = self._named_in_all_calls(chain)
        for call, name in named:
            call.tensors.add((name, *keys_after(call.arguments[name], chain)))
        if named:
            return Tensor
        self._tracer.doubts.refuse()
        raise fx.proxy.TraceError("what a value is cannot be told")

    def _named_in_all_calls(self, nodes: Sequence[fx.Node]) -> list[tuple[Call, str]]:
        """The parameters by which a value came here; none if one call hid it in a container.

        Whatever is assumed of its value can then be checked when the new code is called.
        """
        named = [
            (call, name)
            for call in self._tracer.stack
            for name, value in call.arguments.items()
            if any(value is node for node in nodes)
        ]
        return named if {call for call, _ in named} == set(self._tracer.stack) else []

    def first_of(self, proxy: fx.Proxy, count: int) -> list[fx.Proxy]:
        """The first values of a container, all that ``zip`` with something shorter takes."""
        placeholder = type(proxy) is Proxy and proxy.node.op == "placeholder"
        named = self._named_in_all_calls([proxy.node]) if placeholder else []
        if not named:
            return list(self._tracer.iter(proxy))
        for call, name in named:
            call.lengths[name] = max(count, call.lengths.get(name, 0))
        value: Any = proxy
        return [value[index] for index in range(count)]

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether the value of a node is a tensor, whatever the model's input is."""
        if node.op != "call_module":
            return is_tensor(node)
        module = fetch(self._tracer.model, str(node.target))
        returns = (
            type(module) in _RETURN_A_TENSOR or self._tracer.rules.find(type(module)) is not None
        )
        return returns and not getattr(module, "return_indices", False)
