"""What every method promises, on a real, tiny transformer, of images and of texts: see ``evertune.testing``."""

from __future__ import annotations

import pytest

from evertune.methods import METHODS
from evertune.testing import check_method, checks

OTHERS = (("safe", "released"), ("hide_pet", "evertune"), ("ntk_cl", "released"))


METHODS_AND_PRESETS = [pytest.param(name, None, id=name) for name in METHODS] + [
    pytest.param(name, preset, id=f"{name}-{preset}") for name, preset in OTHERS
]
OF_ANY_KIND = ("memory_is_bounded_over_many_tasks", "unknown_names_are_told_with_the_nearest")
"""What has nothing to do with the kind of input: seen on images, for a few seconds less."""


@pytest.mark.parametrize("check", checks())
@pytest.mark.parametrize(("method", "preset"), METHODS_AND_PRESETS)
def test_contract(method: str, preset: str | None, check: str) -> None:
    check_method(method, preset=preset, only=[check])


@pytest.mark.parametrize("check", [name for name in checks(texts=True) if name not in OF_ANY_KIND])
@pytest.mark.parametrize("method", METHODS)
def test_contract_on_texts(method: str, check: str) -> None:
    pytest.importorskip("transformers")
    # NTK-CL serves texts with its channel-wise subnetwork alone.
    options = {"branch": "channel"} if method == "ntk_cl" else None
    check_method(method, texts=True, only=[check], options=options)
