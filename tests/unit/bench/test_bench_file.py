from __future__ import annotations

from pathlib import Path

import pytest

from evertune.bench import Bench, Flag, read_bench
from evertune.errors import ConfigError

FLAGS = {
    "data": Flag("--data"),
    "first": Flag("--first"),
    "flip": Flag("--flip", "--no-flip", switch=True),
    "crop_scale": Flag("--crop-scale"),
    "columns": Flag("--column", often=True),
    "skip_bad": Flag("--skip-bad", switch=True),
    "method": Flag("--method"),
    "preset": Flag("--preset"),
    "precision": Flag("--precision"),
    "backbone": Flag("--backbone"),
    "order_seed": Flag("--order-seed"),
    "seed": Flag("--seed"),
    "out": Flag("--out"),
}
FILE = """
out = "runs"
[vars]
home = "data"
images = "{home}/images"
[streams.birds]
data = "{home}/birds.zip"
first = 10
[streams.tail]
like = "birds"
first = 5
imbalance = 100
sizes = [5, 3]
flip = false
skip_bad = true
crop_scale = [0.6, 1.0]
columns = ["text=sentence", "label=class"]
[backbones.tiny]
backbone = "vit"
[methods.safe]
preset = "paper"
options = { epochs = 5, "tuning.rank" = 4, plain = true }
[methods.long]
like = "safe"
options = { epochs = 9 }
[[runs]]
stream = ["birds", "tail"]
backbone = "tiny"
method = ["safe", "long"]
orders = [1993, "none"]
seeds = [0, 3]
[[runs]]
name = "{method}-again"
stream = "birds"
backbone = "tiny"
method = "safe"
references = false
"""


def bench(tmp_path: Path, text: str = FILE, **settings: object) -> Bench:
    file = tmp_path / "bench.toml"
    file.write_text(text, encoding="utf-8")
    return read_bench(file, FLAGS, **settings)  # type: ignore[arg-type]


def test_every_combination_is_a_cell_with_a_folder_of_its_own(tmp_path: Path) -> None:
    found = bench(tmp_path)
    assert found.names == ("birds-safe", "birds-long", "tail-safe", "tail-long", "safe-again")
    assert [str(cell.folder) for cell in found.of("tail-long")] == [
        "runs/tail-long/1993", "runs/tail-long/1993-seed3", "runs/tail-long/none", "runs/tail-long/none-seed3",
    ]  # fmt: skip
    assert [str(cell.folder) for cell in found.of("safe-again")] == ["runs/safe-again/1993"]
    assert [cell.order for cell in found.of("tail-long")] == [1993, 1993, None, None]


def test_a_cell_is_an_evertune_run(tmp_path: Path) -> None:
    again, tail = (bench(tmp_path).of(name)[-1].arguments(FLAGS) for name in ("safe-again", "tail-long"))
    assert again == [
        "run", "--method", "safe", "--preset", "paper", "--data", "data/birds.zip", "--first", "10",
        "--backbone", "vit",
        "--set", "epochs=5", "--set", "tuning.rank=4", "--set", "plain=true", "--order-seed", "1993", "--seed", "0",
        "--no-references", "--out", "runs/safe-again/1993",
    ]  # fmt: skip
    assert tail == [
        "run", "--method", "safe", "--preset", "paper", "--data", "data/birds.zip", "--first", "5",
        "--stream", "imbalance=100", "--stream", "sizes=[5, 3]", "--no-flip", "--skip-bad",
        "--crop-scale", "0.6", "1.0",
        "--column", "text=sentence", "--column", "label=class", "--backbone", "vit",
        "--set", "epochs=9", "--set", "tuning.rank=4", "--set", "plain=true", "--order-seed", "none", "--seed", "3",
        "--out", "runs/tail-long/none-seed3",
    ]  # fmt: skip


def test_variables_and_the_place_can_be_given(tmp_path: Path) -> None:
    found = bench(tmp_path, variables={"home": "/data"}, out=tmp_path / "here")
    assert found.cells[0].settings["data"] == "/data/birds.zip"
    assert found.cells[0].folder == tmp_path / "here/birds-safe/1993"


def test_a_variable_may_hold_another_one(tmp_path: Path) -> None:
    text = FILE.replace("{home}/birds.zip", "{images}/birds.zip")
    assert bench(tmp_path, text).cells[0].settings["data"] == "data/images/birds.zip"
    assert bench(tmp_path, text, variables={"home": "x"}).cells[0].settings["data"] == "x/images/birds.zip"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("first = 10", "frist = 10", r"\[streams.birds\]: there is no 'frist' here. Did you mean 'first'"),
        ("imbalance = 100", "imbalence = 100", r"\[streams.tail\]: there is no 'imbalence'.*'imbalance'"),
        ('out = "runs"', 'uot = "runs"', r"the file: there is no 'uot'"),
        ("{home}/birds", "{hom}/birds", r"\[streams.birds\]: {hom} stands for nothing. Did you mean 'home'"),
        ('images = "{home}/images"', 'images = "{images}"', r"\[vars\]: {images} stands for nothing"),
        ('like = "birds"', 'like = "brids"', r"\[streams.tail\]: there is no 'brids' to be like. Did you mean 'birds'"),
        ('like = "safe"', 'like = "long"', r"\[methods.long\]: is like itself"),
        ('data = "{home}/birds.zip"', "", r"\[streams.birds\]: lacks 'data'"),
        ('backbone = "vit"', "first = 3", r"\[streams.birds\] and \[backbones.tiny\] both say 'first'"),
        ('method = "safe"\nref', 'method = "saef"\nref', r"\[\[runs\]\] number 2: there is no \[methods.saef\]"),
        ('stream = "birds"\n', "", r"\[\[runs\]\] number 2: lacks 'stream'"),
        ('stream = "birds"\n', "stream = 3\n", r"\[\[runs\]\] number 2: lacks 'stream'"),
        ("{method}-again", "{metod}", r"\[\[runs\]\] number 2: {metod} stands for nothing. Did you mean 'method'"),
        ("{method}-again", "birds-safe", r"birds-safe.1993 is made twice"),
        ("{method}-again", "../elsewhere", r"'../elsewhere' is no name of a folder"),
        ("references = false", "references = 0", "references = 0 must be true or false"),
        ("references = false", "refs = false", r"\[\[runs\]\] number 2: there is no 'refs'"),
        ("seeds = [0, 3]", "seeds = [0, -3]", "seeds = .* must be a list of whole numbers"),
        ("seeds = [0, 3]", "seeds = [true]", "seeds = .* must be a list of whole numbers"),
        ("seeds = [0, 3]", "seeds = [3, 3]", "names one twice"),
        ('orders = [1993, "none"]', 'orders = ["all"]', "orders = .* must be a list of whole numbers from 0 or 'none'"),
        ("[backbones.tiny]", "[backbones]\ntiny = 3\n[vars.x]", r"\[backbones.tiny\]: must be a table, not 3"),
        ("preset = ", "seed = 3\npreset = ", r"\[methods.safe\]: there is no 'seed' here"),
        ("[streams.birds]", "[streams.birds", "cannot be read as a bench file: "),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FILE
    with pytest.raises(ConfigError, match=message) as error:
        bench(tmp_path, FILE.replace(old, new))
    assert "bench.toml" in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a bench file: No such file"):
        read_bench(tmp_path / "nowhere.toml", FLAGS)
    with pytest.raises(ConfigError, match=r"\[\[runs\]\]: there are none"):
        bench(tmp_path, FILE.split("[[runs]]")[0])
    with pytest.raises(ConfigError, match=r"no variable is called 'hom'. Did you mean 'home'"):
        bench(tmp_path, variables={"hom": "x"})
    (tmp_path / "latin.toml").write_bytes(b"out = '\xe9'")
    with pytest.raises(ConfigError, match="cannot be read as a bench file"):
        read_bench(tmp_path / "latin.toml", FLAGS)
