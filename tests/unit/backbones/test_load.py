"""Loading: where weights come from, what identifies them, and every way they can be wrong."""

from __future__ import annotations

import argparse
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor

from evertune.backbones import TimmViT, load_backbone, read_weights
from evertune.errors import BackboneError

NAME = "test_vit"  # timm's own miniature: 160 px, patch 16, width 64
Make = Callable[..., VisionTransformer]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    empty = timm.create_model(NAME, pretrained=False).state_dict()
    return {k: 0.1 * torch.randn(v.shape, generator=generator) for k, v in empty.items()}


@pytest.fixture
def file(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def expected(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    model = timm.create_model(NAME, pretrained=False).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True)


# -- good files ------------------------------------------------------------------------------------------------------


def test_a_safetensors_file(file: Path, weights: dict[str, Tensor]) -> None:
    vit = load_backbone(f"timm:{NAME}", weights=file, preprocessing="unit")
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(vit(images), expected(weights, images), rtol=1e-5, atol=1e-5)
    assert vit.identity.name == NAME and vit.identity.input_size == 160
    assert not any(p.requires_grad for p in vit.parameters())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pytorch_file(tmp_path: Path, weights: dict[str, Tensor], wrapper: str | None, zipped: bool) -> None:
    content: Any = {wrapper: weights, "epoch": 3, "name": "run"} if wrapper else weights
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "w.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[k], weights[k]) for k in weights)


def test_prefixes_of_training_wrappers_are_taken_off(tmp_path: Path, weights: dict[str, Tensor], file: Path) -> None:
    torch.save({"state_dict": {f"module._orig_mod.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    wrapped = load_backbone(NAME, weights=tmp_path / "w.pth")
    assert wrapped.identity == load_backbone(NAME, weights=file).identity


def test_the_classifier_does_not_matter(tmp_path: Path, weights: dict[str, Tensor], file: Path) -> None:
    here = load_backbone(NAME, weights=file).identity
    headless = {k: v for k, v in weights.items() if not k.startswith("head")}
    save_file(headless, tmp_path / "headless.safetensors")
    save_file(
        {**headless, "head.weight": torch.ones(7, 64), "head.bias": torch.ones(7)}, tmp_path / "other.safetensors"
    )
    assert load_backbone(NAME, weights=tmp_path / "headless.safetensors").identity == here
    assert load_backbone(NAME, weights=tmp_path / "other.safetensors").identity == here


def test_another_input_size_is_resampled_by_timm(file: Path, weights: dict[str, Tensor]) -> None:
    vit = load_backbone(NAME, weights=file, input_size=96, preprocessing="unit")
    images = torch.rand(2, 3, 96, 96)
    model = timm.create_model(NAME, pretrained=False).eval()
    model.load_state_dict(weights)
    model.set_input_size((96, 96))
    with torch.no_grad():
        library = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(vit(images), library, rtol=1e-5, atol=1e-5)
    assert vit.shape.tokens == model.num_prefix_tokens + 36


# -- identity --------------------------------------------------------------------------------------------------------


def test_identity_is_of_the_weights_alone(tmp_path: Path, weights: dict[str, Tensor], file: Path) -> None:
    torch.save({"model": weights}, tmp_path / "w.pth")
    identities = [
        load_backbone(NAME, weights=file).identity,
        load_backbone(NAME, weights=tmp_path / "w.pth").identity,
        load_backbone(NAME, weights=file, input_size=96).identity,
        load_backbone(NAME, weights=file, preprocessing="unit").identity,
    ]
    assert len({i.weights for i in identities}) == 1
    assert len(identities[0].weights) == 64
    assert [i.input_size for i in identities] == [160, 160, 96, 160]
    assert identities[3].mean == (0.0, 0.0, 0.0) and identities[3].std == (1.0, 1.0, 1.0)
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize("changed", ["blocks.3.attn.qkv.weight", "pos_embed", "norm.bias"])
def test_one_changed_number_is_another_identity(
    tmp_path: Path, weights: dict[str, Tensor], file: Path, changed: str
) -> None:
    other = {k: v.clone() for k, v in weights.items()}
    other[changed].view(-1)[0] += 1e-6
    save_file(other, tmp_path / "changed.safetensors")
    changed_identity = load_backbone(NAME, weights=tmp_path / "changed.safetensors").identity
    assert changed_identity.weights != load_backbone(NAME, weights=file).identity.weights


def test_half_precision_files_are_their_float32_values(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    half = {k: v.half() for k, v in weights.items()}
    save_file(half, tmp_path / "half.safetensors")
    save_file({k: v.float() for k, v in half.items()}, tmp_path / "full.safetensors")
    one, two = (load_backbone(NAME, weights=tmp_path / f"{n}.safetensors") for n in ("half", "full"))
    assert one.identity == two.identity
    assert {p.dtype for p in one.parameters()} == {torch.float32}


# -- names -----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BackboneError, match=r"'vit_tiny_patch16_22'.*Did you mean 'vit_tiny_patch16_224'"):
        load_backbone("vit_tiny_patch16_22")
    with pytest.raises(BackboneError, match="Did you mean 'embedded'"):
        load_backbone("embeded")


def test_a_far_name_does_not_list_hundreds() -> None:
    with pytest.raises(BackboneError, match="list_models") as caught:
        load_backbone("qqqqqq")
    assert len(str(caught.value)) < 150


def test_an_unknown_tag(file: Path) -> None:
    for given in ({}, {"weights": file}):
        with pytest.raises(BackboneError, match=r"cannot build .*Invalid pretrained tag \(nonsense\)"):
            load_backbone("vit_tiny_patch16_224.nonsense", **given)


def test_a_model_without_published_weights() -> None:
    with pytest.raises(BackboneError, match=r"could not be had .*No pretrained weights exist.*weights="):
        load_backbone("test_vit4")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            raise OSError("[Errno 101] Network is unreachable\nlong trace")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BackboneError, match=r"could not be had \(OSError: .*unreachable\)"):
        load_backbone(NAME)


def test_the_embedded_backbone_takes_no_weights(file: Path) -> None:
    with pytest.raises(BackboneError, match="brings its own weights"):
        load_backbone("embedded", weights=file)


# -- models the sites cannot serve -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", "is a ResNet.*VisionTransformer"),
        ("vit_pwee_patch16_reg1_gap_256", r"block 0 is made of \(ParallelScalingBlock, .*cannot be opened"),
    ],
)
def test_refused_before_anything_is_fetched_or_read(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=reason):
        load_backbone(name)
    with pytest.raises(BackboneError, match=reason):
        load_backbone(name, weights=tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ({"mlp_layer": SwiGLU}, "Block, Attention, SwiGLU"),  # giant DINOv2, AIMv2
        ({"block_fn": ResPostBlock}, "ResPostBlock, Attention, Mlp"),
        ({"block_fn": ParallelScalingBlock}, "ParallelScalingBlock, NoneType, NoneType"),
        ({"block_fn": ParallelThingsBlock}, "ParallelThingsBlock, NoneType, NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_blocks(make_model: Make, parts: dict[str, Any], found: str) -> None:
    with pytest.raises(
        BackboneError, match=rf"block 0 is made of \({found}\), the tuning sites need .*cannot be opened"
    ):
        TimmViT(make_model(**parts), "foreign")


def test_a_foreign_attention_or_mlp_in_any_block(make_model: Make) -> None:
    model = make_model()
    model.blocks[2].mlp = torch.nn.Identity()
    with pytest.raises(BackboneError, match=r"block 2 is made of \(Block, Attention, Identity\)"):
        TimmViT(model, "odd")


def test_gated_attention(make_model: Make) -> None:
    model = make_model()
    model.blocks[1].attn.gate = torch.nn.Linear(32, 32)
    with pytest.raises(BackboneError, match="attention of block 1 is gated"):
        TimmViT(model, "gated")


def test_a_model_that_pools_nothing(make_model: Make) -> None:
    with pytest.raises(BackboneError, match="pools nothing"):
        TimmViT(make_model(global_pool=""), "unpooled")


# -- bad files -------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("nowhere.safetensors", "nowhere.pth", "."):
        with pytest.raises(BackboneError, match="There is no weight file"):
            load_backbone(NAME, weights=tmp_path / name)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_truncated_file(tmp_path: Path, weights: dict[str, Tensor], kind: str, kept: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(BackboneError, match=r"w\.\w+ cannot be read .*Copy it again"):
        load_backbone(NAME, weights=path)


@pytest.mark.parametrize("content", [b"hello, this is no model\n", b"<html>404 not found</html>", b".", b"\x80\x02."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_a_file_of_something_else(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=rf"w\.{suffix} cannot be read .*not a file of weights"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_noise_never_raises_anything_else(tmp_path: Path) -> None:
    generator = random.Random(0)
    for i in range(200):
        path = tmp_path / "noise.pth"
        path.write_bytes((b"\x80\x02" if i % 2 else b"") + generator.randbytes(generator.randrange(60)))
        with pytest.raises(BackboneError):
            read_weights(path)


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle", "newest pickle"])
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path: Path, weights: dict[str, Tensor], how: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"state_dict": {**weights, "extra": RunsCode(marker)}}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": RunsCode(marker)}, protocol=2))
    elif how == "newest pickle":
        path.write_bytes(pickle.dumps({"state_dict": RunsCode(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(BackboneError, match=r"evil\.pth (asks for posix\.mkdir.*run code|cannot be read)") as caught:
        load_backbone(NAME, weights=path)
    assert how == "newest pickle" or "posix.mkdir" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # never advise the unsafe way
    assert not marker.exists()
    with path.open("rb") as file:  # the file is armed: read the careless way, it does run
        pickle.load(file) if "pickle" in how else torch.load(path, weights_only=False)  # noqa: S301
    assert marker.exists()


def test_settings_beside_the_weights_are_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"model": weights, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"asks for argparse\.Namespace.*save the state_dict alone"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"model": {"a": "text"}}, torch.zeros(3), "text"])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"w\.pth holds no dictionary of tensors: save a state_dict"):
        read_weights(tmp_path / "w.pth")


def test_wrong_shapes(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file({**weights, "blocks.0.mlp.fc1.weight": torch.zeros(10, 64)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"blocks\.0\.mlp\.fc1\.weight is \(10, 64\), not \(192, 64\)"):
        load_backbone(NAME, weights=tmp_path / "w.safetensors")


def test_missing_and_unknown_tensors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    less = {k: v for k, v in weights.items() if k != "norm.weight"}
    save_file({**less, "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"norm\.weight is missing; extra is not part of it"):
        load_backbone(NAME, weights=tmp_path / "w.safetensors")


def test_another_architecture(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"weights of vit_tiny_patch16_224: .*and \d+ more.*another architecture"):
        load_backbone("vit_tiny_patch16_224", weights=file)
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(BackboneError, match=f"weights of {NAME}: .*another architecture"):
        load_backbone(NAME, weights=tmp_path / "resnet.safetensors")


def test_positions_that_timm_cannot_resample(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file({**weights, "pos_embed": torch.zeros(7)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=f"weights of {NAME}: timm cannot convert it"):
        load_backbone(NAME, weights=tmp_path / "w.safetensors")


# -- bad settings and inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "fitting"), [(100, 96), (7, 16), (0, 16), (-16, 16)])
def test_an_input_size_that_patches_do_not_fill(file: Path, size: int, fitting: int) -> None:
    with pytest.raises(BackboneError, match=f"{size} px is not a multiple of its 16 px patches; try {fitting}"):
        load_backbone(NAME, weights=file, input_size=size)


def test_an_unknown_preprocessing(file: Path) -> None:
    with pytest.raises(BackboneError, match=r"'mnist' does not exist: choose 'native' .* 'unit'"):
        load_backbone(NAME, weights=file, preprocessing="mnist")


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 3, 160, 96), (2, 1, 160, 160), (3, 160, 160)])
def test_images_of_another_shape(file: Path, shape: tuple[int, ...]) -> None:
    vit = load_backbone(NAME, weights=file)
    with pytest.raises(BackboneError, match=r"takes images of shape \[B, 3, 160, 160\], got \["):
        vit(torch.zeros(shape))


def test_loading_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    load_backbone("embedded")
    assert torch.equal(torch.get_rng_state(), before)
