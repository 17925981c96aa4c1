"""Each condition of a law that fails gives its reason, and the network would have gone wrong.

The conditions have a file each in `tests/refusals/`; here they are collected.
"""

from tests.refusals.borders import *  # noqa: F403
from tests.refusals.calls import *  # noqa: F403
from tests.refusals.numbers import *  # noqa: F403
from tests.refusals.sharing import *  # noqa: F403
from tests.refusals.sums import *  # noqa: F403
