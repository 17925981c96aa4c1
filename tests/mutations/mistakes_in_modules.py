"""Mistakes in `reparam/modules/`."""

from tests.mutations.mistake import Mistake

IN_MODULES = [
    Mistake(
        "a part that a copy shares with the model stays the model's",
        "modules/copying.py",
        "        holder = twins.get(module, module)\n",
        "        holder = module\n",
    ),
    Mistake(
        "copies that wake up in training mode stay in it",
        "modules/copying.py",
        "            module.training = modes[path]\n",
        "            pass\n",
    ),
    Mistake(
        "shallow copies register their parts together",
        "modules/copying.py",
        "            vars(module)[name] = copy.copy(held)\n",
        "            pass\n",
    ),
    Mistake(
        "what was computed with gradients stops a copy",
        "modules/copying.py",
        "        if func is Tensor.__deepcopy__ and not args[0].is_leaf:\n",
        "        if False:\n",
    ),
    Mistake(
        "a copy that takes another type shares weights with the model",
        "modules/copying.py",
        "                if tensor is not None and memory(tensor) in theirs:\n",
        "                if False:\n",
    ),
    Mistake(
        "code that copies a module sees the model's own memory",
        "modules/copying.py",
        "            and id(parameter) not in at_once\n",
        "",
    ),
    Mistake(
        "the method of a shared part runs the original",
        "modules/copying.py",
        "    method.owner = owner\n",
        "    pass\n",
    ),
    Mistake(
        "a norm writes when it does not train",
        "modules/silent_writes.py",
        '_NORM = SilentWrite(_STATISTICS, "training", False)\n',
        '_NORM = SilentWrite(_STATISTICS, "training", True)\n',
    ),
    Mistake(
        "somebody's operator is believed",
        "modules/state.py",
        "            known = is_torchs(func)\n",
        "            known = True\n",
    ),
    Mistake(
        "what was written to is not put back",
        "modules/state.py",
        "            storage.copy_(original)\n",
        "            pass\n",
    ),
    Mistake(
        "attributes are not put back",
        "modules/state.py",
        "            if not _same(now, content):\n",
        "            if False:\n",
    ),
    Mistake(
        "torch's random numbers go on",
        "modules/state.py",
        "        torch.set_rng_state(torch.frombuffer(bytearray(torch_state), "
        "dtype=torch.uint8))\n",
        "        pass\n",
    ),
    Mistake(
        "an iterator that moved did not",
        "modules/state.py",
        "            if place_of(second) != place:\n",
        "            if False:\n",
    ),
    Mistake(
        "whether a tensor wants gradients is not put back",
        "modules/state.py",
        "                tensor.requires_grad_(requires_grad)\n",
        "                pass\n",
    ),
    Mistake(
        "closures are not looked into",
        "modules/state.py",
        "            return None if home == _OURS else value.__closure__\n",
        "            return None\n",
    ),
    Mistake(
        "the class of a module is not put back",
        "modules/state.py",
        "                module.__class__ = kind\n",
        "                pass\n",
    ),
    Mistake(
        "arrays have no state",
        "modules/positions.py",
        "        return bool(value.flags.writeable) and not value.dtype.hasobject\n",
        "        return False\n",
    ),
    Mistake(
        "an iterator has no second one",
        "modules/positions.py",
        "        return _remade(value)\n",
        "        return _Unmovable()\n",
    ),
    Mistake(
        "a fused part in training mode is planned",
        "modules/call_checks.py",
        "        if module.training and kind is not nn.Module and not made:\n",
        "        if False:\n",
    ),
    Mistake(
        "planning turns gradients off for good",
        "modules/call_checks.py",
        "        torch.set_grad_enabled(self.grad)\n",
        "        pass\n",
    ),
    Mistake(
        "an operator for one type stops the reference",
        "modules/float64.py",
        "        except Exception:  # its operands are of several types, or it is for one "
        "type only\n            return self._with_one_type(func, args, kwargs)\n",
        "        except ZeroDivisionError:\n            return self._with_one_type(func, "
        "args, kwargs)\n",
    ),
    Mistake(
        "a model runs in one mode only",
        "modules/float64.py",
        "        for seed, mode in enumerate((torch.enable_grad, torch.inference_mode)):\n",
        "        for seed, mode in enumerate((torch.no_grad, torch.no_grad)):\n",
    ),
]
