"""Each law of the algebra as a property, against direct computation in float64.

The laws have a file each in `tests/laws/`; here they are collected.
"""

from tests.laws.channels import *  # noqa: F403
from tests.laws.crossing import *  # noqa: F403
from tests.laws.gradients import *  # noqa: F403
from tests.laws.operations import *  # noqa: F403
from tests.laws.plus import *  # noqa: F403
from tests.laws.then import *  # noqa: F403
