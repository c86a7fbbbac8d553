"""What every method promises, on a real, tiny transformer, of images and of texts: see ``evertune.testing``."""

from __future__ import annotations

import pytest

from evertune.methods import METHODS
from evertune.testing import check_method, checks

OTHERS = (("safe", "released"), ("hide_pet", "evertune"), ("ntk_cl", "released"))
LINEAR = (("l2p", "released"), ("dualprompt", "paper"))
"""With random rows and the logits of other tasks left out: few steps, or one class alone, teach these nothing."""
LEARNING = ("it_learns", "a_new_domain_brings_no_class", "a_new_domain_may_bring_some")
"""What they are therefore not asked."""

CHECKED = [pytest.param(name, None, check, id=f"{name}-{check}") for name in METHODS for check in checks()] + [
    pytest.param(name, preset, check, id=f"{name}-{preset}-{check}")
    for name, preset in (*OTHERS, *LINEAR)
    for check in checks()
    if check not in LEARNING or (name, preset) not in LINEAR
]
OF_ANY_KIND = ("memory_is_bounded_over_many_tasks", "unknown_names_are_told_with_the_nearest")
"""What has nothing to do with the kind of input: seen on images, for a few seconds less."""


@pytest.mark.parametrize(("method", "preset", "check"), CHECKED)
def test_contract(method: str, preset: str | None, check: str) -> None:
    check_method(method, preset=preset, only=[check])


@pytest.mark.parametrize("check", [name for name in checks(texts=True) if name not in OF_ANY_KIND])
@pytest.mark.parametrize("method", METHODS)
def test_contract_on_texts(method: str, check: str) -> None:
    pytest.importorskip("transformers")
    # NTK-CL serves texts with its channel-wise subnetwork alone.
    options = {"branch": "channel"} if method == "ntk_cl" else None
    check_method(method, texts=True, only=[check], options=options)
