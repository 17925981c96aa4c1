"""Mistakes in `reparam/modules/`."""

from tests.mutations.mistake import Mistake

IN_MODULES = [
    Mistake(
        "threads that start meanwhile compute on one thread for ever",
        "modules/threads.py",
        "        torch.set_num_threads(later)\n",
        "        pass\n",
    ),
    Mistake(
        "the number of threads is not put back",
        "modules/threads.py",
        "            _compute_on(self.number)\n",
        "            pass\n",
    ),
    Mistake(
        "the user's own model runs on one thread",
        "modules/threads.py",
        "    _compute_on(users)\n",
        "    pass\n",
    ),
    Mistake(
        "an interruption while work begins leaves threads and gradients as they are",
        "modules/call_checks.py",
        "            self.__exit__(type(problem), problem, problem.__traceback__)\n",
        "            pass\n",
    ),
]
