"""The contract of methods as a tool: :func:`check_method` checks what every method promises, on a tiny transformer.

It needs nothing but evertune itself, and transformers for methods on texts.
"""

from evertune.testing import checks_keeping  # noqa: F401, I001  (importing them registers checks, in the order they run)
from evertune.testing import checks_forgetting, checks_learning, checks_predicting, checks_inputs  # noqa: F401
from evertune.testing import checks_refusing, checks_surroundings  # noqa: F401
from evertune.testing.running import check_method, checks
from evertune.testing.suite import CHECKS

__all__ = ["CHECKS", "check_method", "checks"]
