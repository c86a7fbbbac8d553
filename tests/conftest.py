"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import functools
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads beside a busy neighbour cost five times

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evertune.backbones import HFEncoder, TimmViT
from evertune.streams import ArraySource


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, weights and golden vectors beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("EVERTUNE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs {folder} (real data and golden vectors)")
    return folder


@pytest.fixture(scope="session")
def tiny() -> TimmViT:
    """A real timm transformer, small enough to learn in a blink: 32 px, 16 patches, width 48, 3 blocks."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
    with torch.no_grad():  # timm's small initial weights hardly look at the image
        model.patch_embed.proj.weight.mul_(20)
        for block in model.blocks:
            block.attn.qkv.weight.mul_(5)
            block.mlp.fc1.weight.mul_(5)
    return TimmViT(model, "tiny")


@pytest.fixture(scope="session")
def blobs() -> tuple[ArraySource, ArraySource]:
    """Six classes of 32 px images with a bright spot at a place of their own: 12 to learn from, 5 to test on."""
    return blob_data(6, 12, 5)


def blob_data(classes: int, train: int, test: int) -> tuple[ArraySource, ArraySource]:
    rng = np.random.default_rng(0)
    axis = np.arange(32)
    centres = [(6 + 10 * (c % 3), 8 + 14 * (c // 3 % 2)) for c in range(classes)]

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), count)
        places = np.array([centres[c] for c in labels]) + rng.normal(0, 1.5, (len(labels), 2))
        distance = (axis[None, :, None] - places[:, 1, None, None]) ** 2 + (
            axis[None, None] - places[:, 0, None, None]
        ) ** 2
        pixels = 200 * np.exp(-distance / 18) + rng.uniform(0, 40, distance.shape)
        return pixels.clip(0, 255).astype(np.uint8), labels

    names = [f"spot {c}" for c in range(classes)]
    return tuple(ArraySource(*images(n), names, name=part) for n, part in ((train, "train"), (test, "test")))  # type: ignore[return-value]


@pytest.fixture(scope="session")
def encoder() -> Callable[..., HFEncoder]:
    """Makes real, tiny text encoders with random weights: ``encoder("roberta", pooling="cls")``; one of each kind."""
    pytest.importorskip("transformers")
    return functools.cache(tiny_encoder)


def tiny_encoder(family: str = "bert", pooling: str = "mean", max_length: int | None = None) -> HFEncoder:
    model, tokenizer = tiny_text_model(family), word_pieces(family)
    return HFEncoder(model, tokenizer, f"tiny {family}", pooling=pooling, max_length=max_length)


def word_pieces(family: str = "bert") -> Any:
    """A WordPiece tokenizer that knows the words w0 to w79, and letters and digits for all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "[PAD]", "</s>", "[UNK]"] if "roberta" in family else ["[PAD]", "[UNK]", "<s>", "</s>"]
    signs = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [f"w{i}" for i in range(10, 80)]  # w0 to w9 have two pieces
    known = [*special, *signs, *(f"##{sign}" for sign in signs), *words]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", known.index("<s>")), ("</s>", known.index("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="<s>", sep_token="</s>"
    )


def tiny_text_model(family: str = "bert") -> Any:
    """Width 48, 3 blocks of 3 heads, 40 positions; all weights drawn, norms and biases too."""
    import transformers

    vocabulary = len(word_pieces(family))
    if family == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=vocabulary, dim=48, n_layers=3, n_heads=3, hidden_dim=80, max_position_embeddings=40
        )
    else:
        kind = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[family]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=vocabulary,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=80,
            max_position_embeddings=42 if "roberta" in family else 40,
            **({"pad_token_id": 1} if "roberta" in family else {}),
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for p in model.parameters():  # the library's own draw is so small that all texts look alike
            torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """Writes the files of a run that nobody ran, its counts given: see `kept_run`."""
    return kept_run


def kept_run(
    folder: Path,
    correct: list[list[int]],
    *,
    order: int | None = 1993,
    seed: int = 0,
    totals: list[int] | None = None,
    parts: dict[str, list[list[int]]] | None = None,
    config: dict[str, Any] | None = None,
    stream: dict[str, Any] | None = None,
    tasks: int | None = None,
    finished: bool = True,
    references: dict[str, float] | None = None,
    costs: dict[str, float] | None = None,
) -> Path:
    """A run of SAFE, two classes a task; ``correct`` [T, T] of ``totals`` (10 each) by the answer, ``parts`` by others.

    ``config`` and ``stream`` replace what the configuration and the protocol's stream say; ``costs`` were noted.
    """
    from evertune.evaluation import AccuracyMatrix, Protocol, summary
    from evertune.methods import get_method

    count = tasks or len(correct)
    totals = totals or [10] * count
    names = [str(i) for i in np.random.RandomState(order).permutation(2 * count)]
    groups = [{"name": f"task {t + 1}", "classes": names[2 * t : 2 * t + 2]} for t in range(count)]
    described = {
        "kind": "class", "classes": names, "first": 2, "increment": 2, "order_seed": order, "train_per_class": None,
        "data": {"train": "a" * 64, "test": "b" * 64},
        "tasks": [{**g, "train": {"size": 8, "digest": "c"}, "test": {"size": 10, "digest": "d"}} for g in groups],
    }  # fmt: skip
    protocol = Protocol(
        {
            "stream": described | (stream or {}),
            "backbone": {"name": "embedded", "weights": "e" * 64},
            "preprocessing": {"preprocessing": "native", "input_size": 32, "precision": "fp32"},
            "views": {"test": {"view": "test", "size": 32, "resize": None, "interpolation": "bicubic"}},
            "seeds": {"order": order},
            "metric": "top-1",
        }
    )
    matrix = AccuracyMatrix("mixture")
    for part, rows in {"mixture": correct, **(parts or {})}.items():
        for stage, row in enumerate(rows):
            for group, right in enumerate(row):
                matrix.record(stage, group, right, totals[group], part=part)
    settings = {
        "method": "safe",
        "preset": "evertune",
        "options": get_method("safe").config_type.make("evertune").as_dict(),
        "seeds": {"init": seed, "augmentation": seed, "sampling": seed},
        "train_view": {"view": "train", "size": 32, "scale": [0.05, 1.0], "flip": 0.5},
        "precision": "fp32",
        "protocol": protocol.hash,
    } | (config or {})
    log = [
        {"task": g["name"], "seconds": 1.5, "phases": [{"name": "slow", "parameters": 7 * (t + 1)}]}
        for t, g in enumerate(groups[: matrix.stages])
    ]
    (folder / "learner").mkdir(parents=True)
    (folder / "learner/state-1.safetensors").write_bytes(bytes(1000))
    (folder / "learner/learner.json").write_text(json.dumps({"state": {"file": "state-1.safetensors"}}))
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "protocol.json").write_text(protocol.to_json())
    (folder / "matrix.json").write_text(matrix.to_json())
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in log))
    if finished:
        results = {"summary": summary(matrix), "references": references or {}, "protocol": protocol.hash}
        results |= {"cost": costs} if costs else {}
        (folder / "summary.json").write_text(json.dumps(results))
    return folder
