"""LoRA as PEFT adapters: loaded by peft itself onto a model that was built anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evertune import ArraySource, Learner, Stream, load_backbone
from evertune.backbones import HFEncoder, TimmViT, digest
from evertune.errors import ExportError, StorageError, StreamError
from evertune.export import export_peft, library
from evertune.export import peft as module
from evertune.tuning import Tuning

Blobs = tuple[ArraySource, ArraySource]
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def peft() -> object:
    return pytest.importorskip("peft")


def taught(method: str, backbone: TimmViT, blobs: Blobs, tasks: int = 2, **options: object) -> Learner:
    learner = Learner(method, backbone, device="cpu", progress=False, **options)
    for task in list(Stream.class_incremental(*blobs, first=3, increment=3, train_per_class=4))[:tasks]:
        learner.learn(task)
    return learner


@pytest.fixture(scope="module")
def hide(tiny: TimmViT, blobs: Blobs) -> Learner:
    short = {"epochs": 2, "shared_epochs": 2, "tii_epochs": 1, "tap_epochs": 1, "blocks": "0-1"}
    return taught("hide_pet", tiny, blobs, preset="evertune", **short)


@pytest.fixture(scope="module")
def ranpac(tiny: TimmViT, blobs: Blobs) -> Learner:
    """One LoRA, on some of the blocks and not on the keys."""
    return taught("ranpac", tiny, blobs, tasks=1, features=20, epochs=2, blocks="0,2", **{"tuning.targets": "qv"})


def loaded(peft: object, tiny: TimmViT, folder: Path) -> nn.Module:
    """What somebody without evertune makes of the adapter."""
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
    model.load_state_dict(tiny.vit.state_dict())
    return peft.PeftModel.from_pretrained(model, str(folder)).eval()  # type: ignore[attr-defined]


def differ(model: nn.Module, tiny: TimmViT, tuning: Tuning) -> float:
    with torch.no_grad():
        return float((model((IMAGES - 0.5) / 0.5) - tiny(IMAGES, tuning.eval())).abs().max())


def test_each_task_and_the_shared_set_leave_as_an_adapter(
    peft: object, tiny: TimmViT, hide: Learner, tmp_path: Path
) -> None:
    before = digest(tiny.state_dict())
    made = export_peft(hide, tmp_path / "out")
    expected = {"g-0": hide.method.g[0], "e-0": hide.method.e[0], "e-1": hide.method.e[1]}
    assert [(one.name, one.folder) for one in made] == [(name, tmp_path / "out" / name) for name in expected]
    for one in made:
        tuning = expected[one.name]
        model = loaded(peft, tiny, one.folder)
        assert differ(model, tiny, tuning) < 1e-5 and one.difference < 1e-5
        with torch.no_grad():
            moved = float((tiny(IMAGES, tuning) - tiny(IMAGES)).abs().max())
        assert moved > 1e-3, "an adapter that does nothing would pass as well"
    assert digest(tiny.state_dict()) == before


def test_a_task_alone_is_the_folder_itself(peft: object, tiny: TimmViT, hide: Learner, tmp_path: Path) -> None:
    (made,) = export_peft(hide, tmp_path / "out", task="task 2")
    assert (made.name, made.folder) == ("e-1", tmp_path / "out")
    assert differ(loaded(peft, tiny, made.folder), tiny, hide.method.e[1]) < 1e-5
    with pytest.raises(StreamError, match="No task is called 'task 9'"):
        export_peft(hide, tmp_path / "none", task="task 9")
    assert not (tmp_path / "none").exists()


def test_blocks_targets_and_scale_are_those_of_the_tuning(
    peft: object, tiny: TimmViT, ranpac: Learner, tmp_path: Path
) -> None:
    (made,) = export_peft(ranpac, tmp_path / "out")
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert config["target_modules"] == ["blocks.0.attn.qkv", "blocks.2.attn.qkv"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (10, 10, False)  # s = 5/5, r = 5 of q and of v
    weights = load_file(made.folder / "adapter_model.safetensors")
    keys = {name for name in weights if "lora_B" in name}
    assert len(keys) == 2
    for name in keys:
        assert weights[name].shape == (144, 10) and not weights[name][48:96].any()
    tuning = ranpac.method.tuning
    assert differ(loaded(peft, tiny, made.folder), tiny, tuning) < 1e-5
    readme = (made.folder / "README.md").read_text()
    assert tiny.identity.weights in readme and "PeftModel.from_pretrained" in readme


def test_a_sum_of_directions_is_one_adapter(peft: object, tiny: TimmViT, blobs: Blobs, tmp_path: Path) -> None:
    learner = taught("sd_lora", tiny, blobs, tasks=2, epochs=1, blocks="0,2", ranks="3,1:2")
    (made,) = export_peft(learner, tmp_path / "out")
    assert made.folder == tmp_path / "out" and made.rank == 2 * (3 + 2)
    assert differ(loaded(peft, tiny, made.folder), tiny, learner.method.tuning) < 1e-5


def test_what_is_no_lora_stays_behind_and_is_told(peft: object, tiny: TimmViT, blobs: Blobs, tmp_path: Path) -> None:
    learner = taught("ntk_cl", tiny, blobs, tasks=1, epochs=1)
    with pytest.warns(UserWarning, match=r"patch-cur \(token_mixing\)"):
        made = export_peft(learner, tmp_path / "out")
    assert [one.name for one in made] == ["channel-cur", "channel-pre-0"]


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("distilbert", "cls"), ("roberta", "mean")])
def test_text_encoders(
    peft: object, encoder: Callable[..., HFEncoder], family: str, pooling: str, tmp_path: Path
) -> None:
    import transformers

    backbone = encoder(family, pooling=pooling)
    learner = Learner("finetune", backbone, device="cpu", progress=False, blocks="1-2")
    learner.classes = ("yes", "no")
    for p in learner.method.tuning.parameters():
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    (made,) = export_peft(learner, tmp_path / "out")
    fresh = transformers.AutoModel.from_config(backbone.model.config)
    fresh.load_state_dict(backbone.model.state_dict(), strict=False)
    model = peft.PeftModel.from_pretrained(fresh, str(made.folder)).eval()  # type: ignore[attr-defined]
    ids = backbone.tokenizer(["w11 w12 w3", "w40"], padding=True, return_tensors="pt")
    tokens = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
    real = ids["attention_mask"][..., None]
    feature = tokens[:, 0] if pooling == "cls" else (tokens * real).sum(1) / real.sum(1)
    own: Tensor = backbone(ids["input_ids"], learner.method.tuning.eval())
    plain: Tensor = backbone(ids["input_ids"])
    assert (feature - own).abs().max() < 1e-5 and (plain - own).abs().max() > 1e-2
    assert len({file.stat().st_mode for file in made.folder.iterdir()}) == 1  # who may read one may read all


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("simple_cil", {}, "answers from the plain model"),
        ("ranpac", {"tuning": "adapter"}, r"this learner has tuning \(adapter\)"),
        ("ranpac", {"epochs": 0}, "answers from the plain model"),
    ],
)
def test_refused_without_a_lora(
    tiny: TimmViT, method: str, options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    learner = Learner(method, tiny, device="cpu", progress=False, **options)
    with pytest.raises(ExportError, match="nothing yet"):
        export_peft(learner, tmp_path / "out")
    learner.classes = ("a", "b")
    with pytest.raises(ExportError, match=reason):
        export_peft(learner, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_feature_is_noticed_and_nothing_written(
    peft: object, ranpac: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module._by_layer

    def halved(*args: object) -> object:
        layers = whole(*args)  # type: ignore[arg-type]
        return {name: [(a, b / 2, row) for a, b, row in parts] for name, parts in layers.items()}

    monkeypatch.setattr(module, "_by_layer", halved)
    with pytest.raises(ExportError, match=r"tuning, loaded back, gives features that differ .* nothing was written"):
        export_peft(ranpac, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(ranpac: Learner, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds something already"):
        export_peft(ranpac, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_peft_the_remedy_is_told(ranpac: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ExportError, match=r"pip install 'evertune\[export\]'"):
        export_peft(ranpac, tmp_path / "out")


def test_a_folder_of_this_machine_is_not_told(encoder: Callable[..., HFEncoder], tmp_path: Path) -> None:
    backbone = HFEncoder(encoder("bert").model, encoder("bert").tokenizer, f"hf:{tmp_path}")
    assert library.public_name(backbone) == tmp_path.name
    assert str(tmp_path) not in library.building_lines(backbone)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_the_lines_that_build_a_text_model_work(
    encoder: Callable[..., HFEncoder], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder(family).model.save_pretrained(tmp_path / "model")
    lines = library.building_lines(HFEncoder(encoder(family).model, encoder(family).tokenizer, "hf:./model"))
    monkeypatch.chdir(tmp_path)
    made: dict[str, nn.Module] = {}
    exec(lines.replace("./model", "model"), {}, made)
    assert type(made["model"]) is type(encoder(family).model)


@pytest.mark.slow
@pytest.mark.real
def test_a_pre_trained_transformer(peft: object, shared: Path, tmp_path: Path) -> None:
    """Its features are ten times larger than those of drawn weights, and so is their rounding."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    weights = shared / "data/weights" / f"{name}.f32.safetensors"
    backbone = load_backbone(name, weights=weights)
    learner = Learner("hide_pet", backbone, preset="evertune", device="cpu", progress=False)
    learner.classes = ("a", "b")
    for bank in (learner.method.g, learner.method.e, learner.method.e):
        for p in bank.open().parameters():
            nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(len(bank)))
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    made = export_peft(learner, tmp_path / "out")
    assert [one.name for one in made] == ["g-0", "e-0", "e-1"]
    plain = backbone(images)
    for one, tuning in zip(made, (learner.method.g[0], *learner.method.e), strict=True):
        model = timm.create_model(name, num_classes=0)
        model.load_state_dict({k: v for k, v in load_file(weights).items() if not k.startswith("head.")})
        model = peft.PeftModel.from_pretrained(model, str(one.folder)).eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            own = backbone(images, tuning.eval())
            assert (model((images - 0.5) / 0.5) - own).abs().max() < 1e-5 * own.abs().max()
            assert (own - plain).abs().max() > 0.1
