"""Is a rule right? It is compared with what its operator computes.

Files, in the order in which data flows: `differences`, `specimen`, `rule_checks`.
"""

from reparam.testing.rule_checks import RuleCheck, RuleCheckError, rulecheck

__all__ = ["RuleCheck", "RuleCheckError", "rulecheck"]
