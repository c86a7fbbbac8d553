"""Plain features on disk: one pass for all runs, the same numbers, no replay, two at once, bounded, fit to be lost."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from evertune import Learner, Stream, TestView, run
from evertune.backbones import TimmViT
from evertune.engine import DiskCache
from evertune.engine import conditions as conditions_module
from evertune.engine.conditions import architecture
from evertune.engine.entry import Entry, Kept
from evertune.engine.shelf import rooted, when_asked
from evertune.errors import ConfigError, DataError, StorageError
from evertune.references import references
from evertune.streams import ArraySource, Batches, Source
from evertune.streams.chain import Renamed
from evertune.tuning import make_tuning, merged

Data = tuple[ArraySource, ArraySource]
CPU = torch.device("cpu")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows that were decoded while the test ran."""
    rows: list[int] = []
    load = ArraySource.load
    monkeypatch.setattr(ArraySource, "load", lambda self, row: rows.append(row) or load(self, row))
    return rows


def stream_of(blobs: Data, order_seed: int | None = 1993) -> Stream:
    return Stream.class_incremental(*blobs, first=2, increment=2, order_seed=order_seed)


def learned(tiny: TimmViT, stream: Stream, cache: Any, method: str = "simple_cil", **options: Any) -> tuple[Any, Any]:
    """The learner's state, and what it scores and is measured against."""
    learner = Learner(method, tiny, cache=cache, progress=False, eval_batch=16, **options)
    result = run(stream, learner)
    scores = torch.cat([learner.engine.scores(learner.method, task.test)["prototypes"] for task in stream])
    return learner.method.state_dict(), (scores, result.references, result.matrix.to_json())


@pytest.mark.parametrize("method", ["simple_cil", "aper"])
def test_a_warm_cache_gives_the_numbers_of_a_cold_one_and_of_none(
    tiny: TimmViT, blobs: Data, tmp_path: Path, decoded: list[int], method: str
) -> None:
    """To the bit: states, scores, references, matrix. APER also asks for a tuned branch, which is not on disk."""
    options: dict[str, Any] = {"epochs": 1} if method == "aper" else {}
    none, cold = (learned(tiny, stream_of(blobs), cache, method, **options) for cache in (None, tmp_path / "kept"))
    decoded.clear()
    warm = learned(tiny, stream_of(blobs), tmp_path / "kept", method, **options)
    for other in (cold, warm):
        assert all(torch.equal(value, other[0][name]) for name, value in none[0].items())
        assert torch.equal(other[1][0], none[1][0]) and other[1][1:] == none[1][1:]
    if method == "simple_cil":  # the scores above were asked for without the cache
        assert sorted(set(decoded)) == list(range(30)) and len(decoded) == 30


def test_other_orders_and_methods_share_one_pass(
    tiny: TimmViT, blobs: Data, tmp_path: Path, decoded: list[int]
) -> None:
    run(stream_of(blobs), Learner("simple_cil", tiny, cache=tmp_path, progress=False), references=False)
    plain = Learner("simple_cil", tiny, progress=False)
    expected = run(stream_of(blobs, 1994), plain)
    without = Learner("aper", tiny, progress=False, epochs=1)
    run(stream_of(blobs, 1994), without, references=False)

    decoded.clear()
    learner = Learner("simple_cil", tiny, cache=tmp_path, progress=False)
    result = run(stream_of(blobs, 1994), learner)
    assert decoded == []
    assert result.matrix.to_json() == expected.matrix.to_json()
    # Another batch may give another last bit.
    torch.testing.assert_close(learner.method.prototypes.means, plain.method.prototypes.means, rtol=1e-5, atol=1e-5)
    assert result.references == pytest.approx(expected.references)

    learner = Learner("aper", tiny, cache=tmp_path, progress=False, epochs=1)
    run(stream_of(blobs, 1994), learner, references=False)
    for name, value in without.method.state_dict().items():
        torch.testing.assert_close(learner.method.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert len(DiskCache(tmp_path).entries()) == 2  # training and test data, whatever asked


def features(backbone: TimmViT, source: Source, cache: DiskCache, **settings: Any) -> Tensor:
    return Learner("simple_cil", backbone, cache=cache, progress=False, **settings).engine.features(source)


def vit(**settings: Any) -> TimmViT:
    torch.manual_seed(0)
    preprocessing = settings.pop("preprocessing", "native")
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_classes=0, **{"num_heads": 3} | settings
    )
    return TimmViT(model, "vit", preprocessing=preprocessing)


@pytest.mark.parametrize(
    "changed",
    ["precision", "view", "preprocessing", "pooling", "heads", "weights", "data", "library"],
)
def test_what_a_feature_depends_on_is_part_of_its_key(
    blobs: Data, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, data = DiskCache(tmp_path), blobs[1].select(range(20))
    backbone = vit()
    features(backbone, data, cache)
    settings: dict[str, Any] = {}
    match changed:
        case "precision":
            settings["precision"] = "bf16"
        case "view":
            settings["test_view"] = TestView(32, resize=40)
        case "preprocessing":
            backbone = vit(preprocessing="unit")
        case "pooling":
            backbone = vit(global_pool="avg")
        case "heads":
            backbone = vit(num_heads=4)
        case "weights":
            with torch.no_grad():
                backbone.vit.cls_token.add_(1.0)
        case "data":
            x = blobs[1].x.copy()
            x[29] = 0  # a row that is not even asked for
            data = ArraySource(x, blobs[1].labels, blobs[1].classes, name="test").select(range(20))
        case "library":
            monkeypatch.setattr(conditions_module, "version", lambda name: "99")
    got = features(backbone, data, cache, **settings)
    assert len(cache.entries()) == 2
    assert torch.equal(got, Learner("simple_cil", backbone, progress=False, **settings).engine.features(data))


def test_weights_changed_in_place_are_others_and_changed_back_the_same(blobs: Data, tmp_path: Path) -> None:
    """As while a LoRA is merged into them."""
    backbone = vit()
    learner = Learner("simple_cil", backbone, cache=tmp_path, progress=False)
    before = learner.engine.features(blobs[1])
    lora = make_tuning("lora", backbone.shape, torch.Generator().manual_seed(0), blocks="0", rank=2)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.fill_(0.1)
    with merged(backbone, lora):
        within = learner.engine.features(blobs[1])
        assert torch.equal(within, Learner("simple_cil", backbone, progress=False).engine.features(blobs[1]))
    assert not torch.allclose(before, within)
    assert torch.equal(before, learner.engine.features(blobs[1])) and len(DiskCache(tmp_path).entries()) == 2


def test_the_same_forward_has_the_same_key() -> None:
    assert architecture(vit()) == architecture(vit()) != architecture(vit(num_heads=4))


# -- never replay ------------------------------------------------------------------------------------------------------


def test_only_rows_of_the_data_at_hand_are_looked_up(
    tiny: TimmViT, blobs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(blobs)
    run(stream, Learner("aper", tiny, cache=tmp_path, progress=False, epochs=1))  # everything is there
    asked: list[np.ndarray] = []
    read = Entry.read
    monkeypatch.setattr(Entry, "read", lambda self, rows: asked.append(rows) or read(self, rows))
    learner = Learner("aper", tiny, cache=tmp_path, progress=False, epochs=1)
    for task in stream:
        asked.clear()
        learner.learn(task)
        assert set(np.concatenate(asked)) == set(task.train.rows)


def test_without_the_data_there_are_no_features(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    """The same rows of other data, or rows beyond the source, are not known; the shelf of a task ends with it."""
    cache, first = DiskCache(tmp_path), stream_of(blobs)[0].train
    learner = Learner("simple_cil", tiny, cache=cache, progress=False)
    learner.engine.features(blobs[0])
    how = learner.engine._conditions.describe()
    assert cache.shelf(first, how).complete
    forged = ArraySource(np.zeros_like(blobs[0].x), blobs[0].labels, blobs[0].classes, name="train")
    assert not cache.shelf(forged, how).known.any()
    shelf = cache.shelf(first, how)
    assert len(shelf.known) == len(first) < len(blobs[0])
    with pytest.raises(IndexError):
        shelf.view(torch.tensor([len(first)]), CPU).get("plain")


def test_a_learners_folder_holds_no_features(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = stream_of(blobs)
    for name, cache in (("with", tmp_path / "kept"), ("without", None)):
        learner = Learner("simple_cil", tiny, cache=cache, progress=False)
        for task in stream:
            learner.learn(task)
        learner.save(tmp_path / name)
    sizes = [sorted((file.name, file.stat().st_size) for file in (tmp_path / n).iterdir()) for n in ("with", "without")]
    states = [(tmp_path / n / "state-1.safetensors").read_bytes() for n in ("with", "without")]
    assert [name for name, _ in sizes[0]] == [name for name, _ in sizes[1]] and states[0] == states[1]
    assert "kept" not in (tmp_path / "with" / "learner.json").read_text()


def test_losing_the_folder_between_tasks_changes_nothing(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = stream_of(blobs)
    states = []
    for cache in (None, tmp_path / "kept"):
        learner = Learner("simple_cil", tiny, cache=cache, progress=False)
        scores = []
        for task in stream:
            learner.learn(task)
            scores.append(learner.evaluate(task.test))
            if cache is not None:
                assert cache.is_dir()
                shutil.rmtree(cache)
        states.append((learner.method.state_dict(), scores))
    assert states[0][1] == states[1][1]
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())


# -- files -------------------------------------------------------------------------------------------------------------


def plain(rows: int) -> Tensor:
    """A feature for each row that says which row it is."""
    return torch.arange(float(rows))[:, None].expand(rows, 4).contiguous()


def store(cache: DiskCache, source: Source, how: dict[str, Any]) -> None:
    shelf = cache.shelf(source, how)
    shelf.view(torch.arange(len(source)), CPU).put("plain", plain(len(source)), torch.arange(len(source)))
    shelf.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "of another entry"])
def test_a_damaged_segment_is_dropped_and_computed_again(
    tiny: TimmViT, blobs: Data, tmp_path: Path, damage: str
) -> None:
    expected = features(tiny, blobs[1], DiskCache(tmp_path))
    (kept,) = DiskCache(tmp_path).entries()
    (file,) = kept.folder.glob("*.safetensors")
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[:-100])
        case "flipped":
            file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        case "emptied":
            file.write_bytes(b"")
        case "of another entry":
            features(tiny, blobs[1], DiskCache(tmp_path), test_view=TestView(32, resize=40))
            (other,) = (e for e in DiskCache(tmp_path).entries() if e.folder != kept.folder)
            (foreign,) = other.folder.glob("*.safetensors")
            file.unlink()
            shutil.copy(foreign, kept.folder)
    with pytest.warns(UserWarning, match="damaged"):
        got = features(tiny, blobs[1], DiskCache(tmp_path))
    assert torch.equal(got, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(features(tiny, blobs[1], DiskCache(tmp_path)), expected)
    assert [f.name for f in kept.folder.glob("*.safetensors")] == [file.name]


def test_a_full_disk_warns_once_and_fails_nothing(
    tiny: TimmViT, blobs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = learned(tiny, stream_of(blobs), None)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("evertune.engine.store.os.fsync", full)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = learned(tiny, stream_of(blobs), tmp_path / "kept")
    assert [str(w.message) for w in told if "only read" in str(w.message)] == [str(told[0].message)]
    assert "No space left" in str(told[0].message)
    assert torch.equal(got[1][0], expected[1][0]) and got[1][1:] == expected[1][1:]
    assert [file for file in (tmp_path / "kept").rglob("*") if file.is_file()] == []


def test_a_folder_that_cannot_be_is_no_failure(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="only read from now on"):
        learned(tiny, stream_of(blobs), tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_a_data_set_that_cannot_be_read_whole_goes_without(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    """The digest of a task's data set needs files the task does not: that must not stop it."""

    class Gone(ArraySource):
        def _digest(self) -> str:
            raise DataError("3.png is missing.")

    source = Gone(blobs[0].x, blobs[0].labels, blobs[0].classes, name="train")
    with pytest.warns(UserWarning, match=r"No features of train .* 3\.png is missing"):
        features(tiny, source.select(range(24)), DiskCache(tmp_path))
    assert not any(tmp_path.iterdir())


def test_what_was_unused_for_longest_goes_first(blobs: Data, tmp_path: Path) -> None:
    source = blobs[1]
    store(DiskCache(tmp_path), source, {"n": 0})
    size = DiskCache(tmp_path).entries()[0].bytes
    for n in (1, 2):
        store(DiskCache(tmp_path), source, {"n": n})
    ages = {kept.described["n"]: kept.folder for kept in DiskCache(tmp_path).entries()}
    for n, used in ((0, 3000), (1, 1000), (2, 2000)):
        os.utime(ages[n] / "entry.json", (used, used))
    store(DiskCache(tmp_path, int(3.5 * size)), source, {"n": 3})
    assert {kept.described["n"] for kept in DiskCache(tmp_path).entries()} == {0, 2, 3}
    cache = DiskCache(tmp_path, int(2.5 * size))
    assert cache.shelf(source, {"n": 2}).complete  # looking it up is using it
    store(cache, source, {"n": 4})
    assert {kept.described["n"] for kept in cache.entries()} == {2, 4}


def test_what_is_being_read_stays_and_the_bound_holds(blobs: Data, tmp_path: Path) -> None:
    source = blobs[1]
    store(DiskCache(tmp_path), source, {"n": 0})
    size = DiskCache(tmp_path).entries()[0].bytes
    cache = DiskCache(tmp_path, int(1.5 * size))
    shelf = cache.shelf(source, {"n": 0})
    with pytest.warns(UserWarning, match=r"would hold more than its .* GiB"):
        store(cache, source, {"n": 1})
    assert [kept.described["n"] for kept in cache.entries()] == [0] and shelf.complete
    del shelf
    cache = DiskCache(tmp_path, int(1.5 * size))
    store(cache, source, {"n": 1})
    assert [kept.described["n"] for kept in cache.entries()] == [1]
    with pytest.raises(ConfigError, match="at least 1"):
        DiskCache(tmp_path, 0)


def test_two_at_once_lose_nothing(blobs: Data, tmp_path: Path) -> None:
    """Each begins before the other ends; half of their rows are the same."""
    source = blobs[1]
    one, two = DiskCache(tmp_path), DiskCache(tmp_path)
    halves = source.select(range(20)), source.select(range(10, 30))
    shelves = one.shelf(halves[0], {}), two.shelf(halves[1], {})
    for shelf, first in zip(shelves, (0, 10), strict=True):
        shelf.view(torch.arange(20), CPU).put("plain", plain(30)[first : first + 20], torch.arange(20))
    for shelf in shelves:
        shelf.close()
    for cache in (one, two, DiskCache(tmp_path)):
        shelf = cache.shelf(source, {})
        assert shelf.complete and torch.equal(shelf.read(torch.arange(30)), plain(30))
    files = [load_file(file) for file in tmp_path.rglob("*.safetensors")]
    assert sorted(torch.cat([file["rows"] for file in files]).tolist()) == list(range(30))  # none of them twice


def test_an_entry_removed_while_another_is_written_comes_back(
    blobs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evertune.engine import entry as module

    write, removed = module.write_atomic, []

    def write_after_removal(path: Path, content: bytes) -> None:
        if not removed:
            removed.append(Kept(path.parent, {}, 0, 0).remove())
            raise StorageError("it could not be written") from FileNotFoundError(path)
        write(path, content)

    monkeypatch.setattr(module, "write_atomic", write_after_removal)
    store(DiskCache(tmp_path), blobs[1], {"n": 0})
    assert removed == [True] and DiskCache(tmp_path).shelf(blobs[1], {"n": 0}).complete


def test_what_was_computed_before_an_error_is_kept(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    class Broken(ArraySource):
        def load(self, index: int) -> Any:
            if index == 40:
                raise DataError("row 40 is broken")
            return super().load(index)

    source = Broken(blobs[0].x, blobs[0].labels, blobs[0].classes, name="train")
    learner = Learner("simple_cil", tiny, cache=tmp_path, progress=False, eval_batch=16)
    with pytest.raises(DataError, match="row 40"):
        learner.engine.features(source)
    shelf = DiskCache(tmp_path).shelf(source, learner.engine._conditions.describe())
    assert shelf.known.nonzero()[:, 0].tolist() == list(range(32))


def test_clear_removes_entries_and_nothing_else(blobs: Data, tmp_path: Path) -> None:
    """Folders with such names are made by others too: what does not say that it is an entry is no entry."""
    cache = DiskCache(tmp_path)
    store(cache, blobs[1], {"n": 0})
    (tmp_path / "notes.txt").write_text("mine")
    for name, label in (("a", None), ("b", "{}"), ("c", "[1"), ("d", '["format"]')):
        (tmp_path / (name * 64)).mkdir()
        (tmp_path / (name * 64) / "layer.safetensors").write_text("mine")
        if label is not None:
            (tmp_path / (name * 64) / "entry.json").write_text(label)
    held = cache.entries()[0].bytes
    assert cache.clear() == held > 0
    assert sorted(file.name[0] for file in tmp_path.iterdir()) == ["a", "b", "c", "d", "n"]
    assert len(list(tmp_path.rglob("layer.safetensors"))) == 4
    assert not cache.shelf(blobs[1], {"n": 0}).known.any()
    assert DiskCache(tmp_path / "nowhere").entries() == [] and not (tmp_path / "nowhere").exists()


def test_a_damaged_label_is_written_anew(blobs: Data, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    store(cache, blobs[1].select(range(10)), {"n": 0})
    (label,) = tmp_path.rglob("entry.json")
    label.write_text("{")
    assert cache.entries() == []
    store(DiskCache(tmp_path), blobs[1], {"n": 0})
    (kept,) = cache.entries()
    assert kept.rows == 30 and kept.described["data"]["name"] == "test"


# -- small parts -------------------------------------------------------------------------------------------------------


def test_rows_are_known_by_their_place_in_the_data_set(blobs: Data) -> None:
    names = [f"other/{name}" for name in blobs[0].classes]
    chosen = Renamed(blobs[0].select([5, 3, 9, 7]), names).select([2, 0, 0])
    root, rows = rooted(chosen)
    assert root is blobs[0] and rows.tolist() == [9, 5, 5]


def test_repeated_rows_are_kept_once(blobs: Data, tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path), blobs[1].select([4, 4, 2, 4])
    shelf = cache.shelf(source, {})
    shelf.view(torch.arange(4), CPU).put("plain", plain(30)[[4, 4, 2, 4]], torch.arange(4))
    shelf.close()
    again = cache.shelf(source, {})
    assert again.complete and torch.equal(again.read(torch.arange(4)), plain(30)[[4, 4, 2, 4]])
    assert cache.entries()[0].rows == 2


@pytest.mark.parametrize(("world", "asks"), [(1, None), (1, 0), (2, 1)])
def test_batches_are_read_when_asked_for(blobs: Data, decoded: list[int], world: int, asks: int | None) -> None:
    """From the first one that is asked for; rows, inputs and labels are those of the usual batches."""
    source, view = blobs[1], TestView(32)
    made: dict[str, Any] = {"shuffle": False, "seed": (0,), "epoch": 0, "rank": world - 1, "world": world}
    usual = list(Batches(source, view, 8, **made))
    decoded.clear()
    lazy = when_asked(source, 8, lambda rows: Batches(source, view, 8, rows=rows, **made), world - 1, world)
    for number, (got, expected) in enumerate(zip(lazy, usual, strict=True)):
        assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[2])
        if asks is not None and number >= asks:
            inputs = got[1]() if callable(got[1]) else got[1]
            assert callable(got[1]) == (number == asks) and torch.equal(inputs, expected[1])
    assert decoded == ([] if asks is None else np.concatenate([rows for rows, _, _ in usual[asks:]]).tolist())


def test_joint_references_come_from_the_cache(tiny: TimmViT, blobs: Data, tmp_path: Path, decoded: list[int]) -> None:
    stream = stream_of(blobs)
    expected = references(Learner("simple_cil", tiny, cache=tmp_path, progress=False), stream)
    decoded.clear()
    assert references(Learner("simple_cil", tiny, cache=tmp_path, progress=False), stream) == expected
    assert decoded == []
