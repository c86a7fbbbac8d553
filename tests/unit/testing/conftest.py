"""How a check is shown to fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evertune.methods import Method
from evertune.testing import check_method


@pytest.fixture(scope="session")
def breaks() -> Callable[[type[Method], str, str], None]:
    """``breaks(method, check, words)``: the check fails at the method, and its message names all three."""

    def see(method: type[Method], check: str, words: str) -> None:
        with pytest.raises(AssertionError, match=words) as found:
            check_method(method, only=[check])
        assert check in str(found.value) and method.__qualname__ in str(found.value)

    return see
