"""A tuning folded into the weights of the timm model: loaded by timm itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

from evertune import ArraySource, Learner, Stream
from evertune.backbones import HFEncoder, TimmViT, digest
from evertune.errors import ExportError
from evertune.export import export_timm
from evertune.export import merged as module

Blobs = tuple[ArraySource, ArraySource]


@pytest.fixture(scope="module")
def small() -> TimmViT:
    """A model that timm knows by name, at another input size than its own."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32)
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(20)
        for block in model.blocks:
            block.attn.qkv.weight.mul_(5)
    return TimmViT(model, "test_vit", preprocessing="imagenet")


def taught(backbone: TimmViT, blobs: Blobs, method: str, **options: object) -> Learner:
    learner = Learner(method, backbone, device="cpu", progress=False, epochs=1, **options)
    learner.learn(next(iter(Stream.class_incremental(*blobs, first=3, increment=3, train_per_class=4))))
    return learner


IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("method", "options", "classes"),
    [
        ("finetune", {"blocks": "0,3-5"}, 3),
        ("finetune", {"tuning": "ssf", "blocks": "1-5"}, 3),
        ("slca", {"tuning": "full", "blocks": "4-5", "first": 1.0}, 3),
        ("ranpac", {"features": 0, "tuning": "ssf"}, 3),  # a ridge on the features themselves is a linear map
        ("ranpac", {"features": 30}, 0),  # on random features it is none
        ("ranpac", {"features": 0, "scoring": "cosine"}, 0),
        ("inflora", {"head": "linear", "blocks": "0,3"}, 3),
        ("sd_lora", {"blocks": "0,3"}, 0),
        ("safe", {"features": 0}, 3),  # after one task the slow learner answers alone
    ],
)
def test_timm_gives_the_features_and_where_they_are_linear_the_scores(
    small: TimmViT, blobs: Blobs, method: str, options: dict[str, object], classes: int, tmp_path: Path
) -> None:
    learner = taught(small, blobs, method, **options)
    before = digest(small.state_dict())
    file = tmp_path / "merged.safetensors"
    made = export_timm(learner, file)
    assert (made.file, made.classes) == (file, classes) and made.difference < 1e-5
    model = timm.create_model("test_vit", num_classes=classes, img_size=32, checkpoint_path=str(file)).eval()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    tuning = next(iter(learner.method.branches))
    with torch.no_grad():
        tokens = model.forward_features((IMAGES - mean) / std)
        feature = model.forward_head(tokens, pre_logits=True)
        own = small(IMAGES, tuning)
        moved = float((own - small(IMAGES)).abs().max())
    assert (feature - own).abs().max() < 1e-5 < moved / 10
    if classes:
        pixels = (IMAGES * 255).round().to(torch.uint8)
        with torch.no_grad():
            logits = model((pixels / 255 - mean) / std)
        scores = learner.scores(pixels.permute(0, 2, 3, 1).numpy())
        torch.testing.assert_close(logits, scores, rtol=1e-5, atol=1e-5)
    assert digest(small.state_dict()) == before


def test_the_file_says_what_it_is(small: TimmViT, blobs: Blobs, tmp_path: Path) -> None:
    learner = taught(small, blobs, "finetune")
    export_timm(learner, tmp_path / "merged.safetensors")
    with safe_open(tmp_path / "merged.safetensors", "pt") as opened:
        about = opened.metadata()
    assert about["architecture"] == "test_vit" and json.loads(about["input_size"]) == 32
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406]
    assert tuple(json.loads(about["classes"])) == learner.classes


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("simple_cil", {}, "answers from the plain model: there is nothing to merge"),
        ("aper", {}, "answers from the plain model and 1 tuning, each in a pass of its own"),
        ("hide_pet", {"blocks": "0"}, "answers from 3 tunings"),
        ("ranpac", {"tuning": "adapter"}, r"this learner's tuning \(adapter\) is no change of weights"),
        ("ranpac", {"tuning": "vpt"}, r"this learner's tuning \(vpt\) is no change of weights"),
    ],
)
def test_what_is_no_single_change_of_weights_is_refused(
    tiny: TimmViT, method: str, options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    learner = Learner(method, tiny, device="cpu", progress=False, **options)
    with pytest.raises(ExportError, match="learned nothing yet"):
        export_timm(learner, tmp_path / "merged.safetensors")
    learner.classes = ("a", "b")
    if method == "hide_pet":
        learner.method.g.open()
        learner.method.e.open()
        learner.method.e.open()
    with pytest.raises(ExportError, match=f"(?i){reason}"):
        export_timm(learner, tmp_path / "merged.safetensors")
    assert not list(tmp_path.iterdir())


def test_ssf_needs_a_bias_to_shift(tiny: TimmViT, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 0}
    model = timm.models.VisionTransformer(**arguments, qkv_bias=False)
    learner = Learner("ranpac", TimmViT(model, "unbiased"), device="cpu", progress=False, tuning="ssf", blocks="0")
    learner.classes = ("a", "b")
    with pytest.raises(ExportError, match=r"blocks\.0\.attn\.qkv has no bias"):
        export_timm(learner, tmp_path / "merged.safetensors")


def test_ssf_needs_a_last_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 0}
    model = timm.models.VisionTransformer(**arguments, global_pool="avg")  # its norm comes after the pooling
    learner = Learner("ranpac", TimmViT(model, "pooled"), device="cpu", progress=False, tuning="ssf", blocks="0")
    learner.classes = ("a", "b")
    with pytest.raises(ExportError, match="norm has no weight"):
        export_timm(learner, tmp_path / "merged.safetensors")


def test_texts_have_no_timm_model(encoder: object, tmp_path: Path) -> None:
    backbone: HFEncoder = encoder("bert")  # type: ignore[operator]
    learner = Learner("finetune", backbone, device="cpu", progress=False, blocks="0")
    with pytest.raises(ExportError, match=r"no model of timm's: a LoRA of it can leave as a PEFT adapter"):
        export_timm(learner, tmp_path / "merged.safetensors")


def test_another_feature_is_noticed_and_the_former_file_stays(
    small: TimmViT, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = taught(small, blobs, "ranpac", features=20)
    file = tmp_path / "merged.safetensors"
    file.write_text("former")
    for p in learner.method.tuning.parameters():
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "folded", lambda state, tuning: dict(state))
    with pytest.raises(ExportError, match="The merged model, loaded back, gives features that differ"):
        export_timm(learner, file)
    assert file.read_text() == "former"
