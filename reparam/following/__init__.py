"""Operators that follow their branches: brought up to date, or computed at every use.

Files, in the order in which data flows: `names`, `recipe_books`, `live_operators`, `refreshing`,
`live_models`.
"""

from reparam.following.live_models import make_live, set_training, standing, without_dropout
from reparam.following.live_operators import is_live
from reparam.following.recipe_books import ATTRIBUTE, Bookkeeper
from reparam.following.refreshing import refresh
