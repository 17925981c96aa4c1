"""Mistakes in what follows training: lazy values, refreshed models, live operators."""

from tests.mutations.mistake import Mistake

IN_FOLLOWING = [
    Mistake(
        "a constant is what it was, however it was computed",
        "algebra/expressions.py",
        "    return _ORIGINS.get(value, value) if isinstance(value, Tensor) else value\n",
        "    return value\n",
    ),
    Mistake(
        "a value that is written to is taken for what it was before",
        "algebra/expressions.py",
        "    if args and result is args[0] and not wrote:\n",
        "    if args and result is args[0]:\n",
    ),
    Mistake(
        "numbers that a rule asked for are not compared",
        "algebra/affine.py",
        "np.array_equal(new, old) for",
        "True for",
    ),
    Mistake(
        "a padding is not compared with the bias again",
        "algebra/laws.py",
        "    if problem is not None:\n        raise LawError(problem.reason)\n",
        "",
    ),
    Mistake(
        "what a rule computes unseen is taken for a constant",
        "rules/calling.py",
        "        if not _is_seen(step, rule, args, kwargs):\n",
        "        if False:\n",
    ),
    Mistake(
        "gradients of a computed batch norm's weight are cut",
        "algebra/affine.py",
        "factor * (1 if weight is None else exact(weight))\n",
        "factor * (1 if weight is None else exact(weight).detach())\n",
    ),
    Mistake(
        "what was never fused is not copied",
        "following/refreshing.py",
        "        for target, source in targets:\n            target.copy_(source)\n",
        "",
    ),
    Mistake(
        "another type is rounded to at once",
        "following/refreshing.py",
        "        rounded = recipe.rounded(exact, read)",
        "        rounded = dict(exact)",
    ),
    Mistake(
        "conditions are found broken when half of the operators are new",
        "following/refreshing.py",
        "            if recipe.conditional:\n",
        "            if False:\n",
    ),
    Mistake(
        "tensors that became tied are not noticed",
        "following/names.py",
        "        if now.first != self.first:\n",
        "        if False:\n",
    ),
    Mistake(
        "a new parameter is not noticed",
        "following/recipe_books.py",
        "    if new:\n",
        "    if False:\n",
    ),
    Mistake(
        "settings of layers are not compared",
        "following/recipe_books.py",
        "        if said != book.settings.get(path, said):\n",
        "        if False:\n",
    ),
    Mistake(
        "a live operator computes its weights without a gradient that is recorded",
        "following/live_operators.py",
        "        tensors = recipe.rounded(recipe.exact(read), read)\n",
        "        with torch.no_grad():\n"
        "            tensors = recipe.rounded(recipe.exact(read), read)\n",
    ),
    Mistake(
        "a live batch norm goes into training mode",
        "following/live_operators.py",
        "        return super().train(False)\n",
        "        return super().train(mode)\n",
    ),
    Mistake(
        "a live form forgets what its branches held besides weights",
        "following/live_models.py",
        "            if entry is not None and held.get(own) is None:\n",
        "            if entry is not None and name != '_buffers' and held.get(own) is None:\n",
    ),
    Mistake(
        "live models are fused although their dropout layers differ from call to call",
        "following/live_models.py",
        "        fetch(model, path).training = False\n",
        "        pass\n",
    ),
    Mistake(
        "values of an expression are kept until all of it is computed",
        "algebra/expressions.py",
        "            if not uses[id(each)]:\n",
        "            if False:\n",
    ),
    Mistake(
        "a scale before a kernel makes a second kernel",
        "algebra/kernels.py",
        "blocks.mul(factors) if torch.is_grad_enabled() else blocks.mul_(factors)",
        "blocks.mul(factors)",
    ),
    Mistake(
        "the gradient of a constant needs a kernel that was written to",
        "algebra/kernels.py",
        "blocks.mul(factors) if torch.is_grad_enabled() else blocks.mul_(factors)",
        "blocks.mul_(factors)",
    ),
    Mistake(
        "a live operator that stays beside others is multiplied by as if it were trained",
        "following/live_operators.py",
        'wants = held["_trains"] and ',
        "wants = ",
    ),
    Mistake(
        "torch.compile meets a parameter that is made",
        "following/live_operators.py",
        "    eager = not torch.compiler.is_compiling()\n",
        "    eager = True\n",
    ),
]
