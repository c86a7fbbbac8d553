"""The material for methods on texts: a tiny encoder of Hugging Face transformers with a tokenizer made here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evertune.backbones import HFEncoder
from evertune.errors import ConfigError
from evertune.streams import Source, TextSource
from evertune.testing.material import CLASSES, Material

LENGTH = 40
"""Tokens that the encoder reads."""


def encoder() -> HFEncoder:
    """A BERT of width 48 with 3 blocks of 3 heads; all weights drawn, norms and biases too.

    Raises
    ------
    ConfigError
        The package transformers is not there.
    """
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise ConfigError("Checks on texts need transformers: pip install 'evertune[text]'.") from error
    tokenizer = word_pieces()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=80,
        max_position_embeddings=LENGTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for p in model.parameters():  # the library's own draw is so small that all texts look alike
            torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0, 0.2)
    return HFEncoder(model.eval(), tokenizer, "tiny bert", pooling="mean")


def word_pieces() -> Any:
    """A WordPiece tokenizer that knows the words w10 to w79, and letters and digits for all others."""
    tokenizers, transformers = import_module("tokenizers"), import_module("transformers")
    signs = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [f"w{i}" for i in range(10, 80)]
    known = ["[PAD]", "[UNK]", "<s>", "</s>", *signs, *(f"##{sign}" for sign in signs), *words]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(known)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<s>", known.index("<s>")), ("</s>", known.index("</s>"))]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="<s>", sep_token="</s>"
    )


def sentences(rows: int, seed: int) -> NDArray[Any]:
    """Texts [rows] of 3 to 20 words, nearly all of them out of three of their class."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        own, words = row % len(CLASSES), rng.integers(3, 21)
        drawn = np.where(rng.random(words) < 0.95, rng.integers(10, 13, words) + 10 * own, rng.integers(10, 80, words))
        made.append(" ".join(f"w{word}" for word in drawn))
    return np.array(made)


def labelled_sentences(x: NDArray[Any], labels: NDArray[np.int64], classes: Sequence[str]) -> Source:
    return TextSource(x.tolist(), labels, classes, name="texts")


TEXTS = Material("texts", encoder, sentences, labelled_sentences)
