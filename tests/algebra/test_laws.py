"""Each law of the algebra as a property, against direct computation in float64.

The laws have a file each in `tests/algebra/laws/`; here they are collected.
"""

from tests.algebra.laws.borders import *  # noqa: F403
from tests.algebra.laws.channels import *  # noqa: F403
from tests.algebra.laws.crossing import *  # noqa: F403
from tests.algebra.laws.gradients import *  # noqa: F403
from tests.algebra.laws.known_sizes import *  # noqa: F403
from tests.algebra.laws.operations import *  # noqa: F403
from tests.algebra.laws.plus import *  # noqa: F403
from tests.algebra.laws.then import *  # noqa: F403
