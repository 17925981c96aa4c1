"""Mistakes in what makes branches of a layer, and a layer of branches."""

from tests.mutations.mistake import Mistake

IN_EXPANSION = [
    Mistake(
        "half of what the branches compute stays in the main kernel",
        "expansion/building.py",
        "    write(layer, 2 * kernel - summed, taken)\n",
        "    write(layer, 1.5 * kernel - 0.5 * summed, taken)\n",
    ),
    Mistake(
        "a smaller kernel stands in the corner of the layer's own",
        "expansion/building.py",
        "            (before - d * ((k - own) // 2), after - d * (k - own - (k - own) // 2))\n",
        "            (before, after - d * (k - own))\n",
    ),
    Mistake(
        "the stride of a layer goes to the last step of a branch",
        "expansion/building.py",
        "        return own[0] if own else (kernels[-1] if kernels else None)\n",
        "        return kernels[-1] if kernels else None\n",
    ),
    Mistake(
        "layers are expanded although all their branches train like one",
        "expansion/building.py",
        "    (layer,) = made.main\n    return all(\n",
        "    (layer,) = made.main\n    return False and all(\n",
    ),
    Mistake(
        "weights that are shared are expanded",
        "expansion/choosing.py",
        "if any(self._tensors[id(tensor)] > 1 for",
        "if any(False for",
    ),
    Mistake(
        "layers whose weights code reads are expanded",
        "expansion/choosing.py",
        "        if id(layer) in self._read:\n",
        "        if False:\n",
    ),
    Mistake(
        "hooks on the parts of an expanded layer are not heeded",
        "capture/tracer.py",
        "            return all(is_as_made(part) for part in m.modules() if part is not m)\n",
        "            return True\n",
    ),
    Mistake(
        "the norm of a branch has the statistics of another",
        "expansion/norms.py",
        "*statistics[path, index]",
        "*statistics[path, 0]",
    ),
    Mistake(
        "the norm of the main branch forgets eps in the factor that undoes it",
        "expansion/norms.py",
        "(norm.running_var.double() + norm.eps).sqrt()",
        "norm.running_var.double().sqrt()",
    ),
    Mistake(
        "an expanded model is left in eval mode",
        "modules/tree.py",
        "            module.training = mode\n",
        "            pass\n",
    ),
    Mistake(
        "the branches of a frozen layer are trained",
        "expansion/driver.py",
        "        layer.requires_grad_(isinstance(weight, Tensor) and weight.requires_grad)\n",
        "        layer.requires_grad_(isinstance(weight, Tensor))\n",
    ),
    Mistake(
        "an expanded layer that a region takes in is counted twice",
        "fusing/expanded.py",
        'for n in nodes if n.op == "call_module"}\n',
        "for n in ()}\n",
    ),
    Mistake(
        "graphs of the expanded model are not compared with those of the model",
        "expansion/noticing.py",
        "        if not group or graphs(parts_of(model)) == before:\n",
        "        if True:\n",
    ),
    Mistake(
        "layers of which untraced code asks what they are are expanded",
        "expansion/choosing.py",
        "        if id(layer) in self._asked:\n",
        "        if False:\n",
    ),
    Mistake(
        "layers stay although the answer about them does not change",
        "capture/reading/follower.py",
        "            told = tells_all or isinstance(module, classes)\n",
        "            told = True\n",
    ),
]
