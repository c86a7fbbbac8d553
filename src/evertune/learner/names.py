"""Names that can be kept and printed."""

from __future__ import annotations

import unicodedata


def printable(name: str) -> bool:
    """Whether nothing in ``name`` ends a line, moves a terminal's cursor, or is half a character.

    >>> printable("blue tit"), printable("blue\\x1b[2Jtit")
    (True, False)
    """
    return not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs") for sign in name)
