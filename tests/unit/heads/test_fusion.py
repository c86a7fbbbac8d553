"""NTK-CL's fusion is an attention over one token: its closed form, its dropout, its sizes (spec §4.5, §12.5)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from evertune.heads import HybridFusion

DOUBLE = {"dtype": torch.float64}
WIDTH, HEADS = 24, 8


def fusion(dropout: float = 0.1, attention: bool = False) -> HybridFusion:
    return HybridFusion(WIDTH, torch.Generator().manual_seed(0), dropout=dropout, attention=attention).double()


def given(rows: int) -> tuple[Tensor, Tensor]:
    """c and p."""
    both = torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(1), **DOUBLE)
    return both[0].requires_grad_(), both[1].requires_grad_()


def test_it_is_the_attention_of_one_token() -> None:
    """Against torch's own: output and gradients, which query and key never have."""
    mine = fusion(attention=True).eval()
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **DOUBLE).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([mine.query_weight, mine.key_weight, mine.value_weight]))
        theirs.in_proj_bias.copy_(torch.cat([mine.query_bias, mine.key_bias, mine.value_bias]))
        theirs.out_proj.weight.copy_(torch.eye(WIDTH))
        theirs.out_proj.bias.zero_()
    c, p = given(5)
    attended = theirs(p[:, None], c[:, None], c[:, None])[0][:, 0]
    wanted = 0.5 * attended + c + 0.1 * p
    got = mine(c, p)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
    close = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), (c, p), retain_graph=True),
        torch.autograd.grad(wanted.square().sum(), (c, p), retain_graph=True),
        **close,
    )
    got.square().sum().backward()
    wanted.square().sum().backward()
    for part, whole in (("weight", theirs.in_proj_weight.grad), ("bias", theirs.in_proj_bias.grad)):
        query, key, value = whole.chunk(3)
        torch.testing.assert_close(getattr(mine, f"value_{part}").grad, value, **close)
        assert query.abs().max() < 1e-12 and key.abs().max() < 1e-12
        assert getattr(mine, f"query_{part}").grad is None and getattr(mine, f"key_{part}").grad is None


@pytest.mark.parametrize("dropout", [0.1, 0.4])
def test_training_drops_whole_heads(dropout: float) -> None:
    """Each head of each sample is dropped or divided by 1 − p, so that m is right on average."""
    mine, (c, p) = fusion(dropout).train(), given(4000)
    torch.manual_seed(0)
    value = nn.functional.linear(c, mine.value_weight, mine.value_bias)
    factor = (2 * (mine(c, p) - c - 0.1 * p) / value).detach().view(4000, HEADS, WIDTH // HEADS)
    torch.testing.assert_close(factor, factor[:, :, :1].expand_as(factor), rtol=1e-6, atol=1e-8)
    dropped = factor[:, :, 0].abs() < 1e-6
    torch.testing.assert_close(factor[:, :, 0][~dropped], torch.full_like(factor[:, :, 0][~dropped], 1 / (1 - dropout)))
    assert dropped.double().mean().item() == pytest.approx(dropout, abs=5 * math.sqrt(dropout / 32_000))
    together = torch.corrcoef(dropped.T.double()) - torch.eye(HEADS, **DOUBLE)
    assert together.abs().max() < 5 / math.sqrt(4000)
    assert factor.mean().item() == pytest.approx(1, abs=0.03)


def test_without_dropout_training_changes_nothing() -> None:
    mine, (c, p) = fusion(0.0), given(6)
    assert torch.equal(mine.train()(c, p), mine.eval()(c, p))
    assert torch.equal(fusion(0.9).eval()(c, p), mine(c, p))


@pytest.mark.parametrize(("width", "heads"), [(24, 8), (12, 4), (7, 1)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    made = HybridFusion(width, torch.Generator(), dropout=0.5)
    assert made.heads == heads
    assert made.train()(torch.ones(2, width), torch.ones(2, width)).shape == (2, width)


@pytest.mark.parametrize(("width", "live", "released"), [(1536, 2_360_832, 7_082_496), (2304, 5_310_720, 15_932_160)])
def test_parameters_for_a_vit_b(width: int, live: int, released: int) -> None:
    for attention, count in ((False, live), (True, released)):
        made = HybridFusion(width, torch.Generator().manual_seed(0), attention=attention)
        assert sum(p.numel() for p in made.parameters()) == count
        for parameter in made.parameters():
            assert 0.99 / math.sqrt(width) < parameter.abs().max() <= 1 / math.sqrt(width)
