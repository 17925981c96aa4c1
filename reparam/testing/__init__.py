"""Compare a rule with what its operator computes."""

from reparam.testing.rule_checks import RuleCheck, RuleCheckError, rulecheck

__all__ = ["RuleCheck", "RuleCheckError", "rulecheck"]
