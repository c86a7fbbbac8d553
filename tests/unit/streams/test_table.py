"""Tables of texts and of image files."""

from __future__ import annotations

import csv
import json
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evertune.errors import DataError
from evertune.streams import FileSource, Stream, Task, TextSource, open_data, open_splits
from evertune.streams.strings import Strings

ROWS = [("where is my card", "card"), ('a, "quoted"\nline', "card"), ("pay me", "pay"), ("Überweisung", "pay")]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def write_csv(path: Path, rows: list[Any], header: str = "text,label", delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def texts(source: Any) -> list[str]:
    assert source.modality == "text"
    return [source.load(row) for row in range(len(source))]


def every(path: Path, **options: Any) -> tuple[list[str], list[str]]:
    """All texts of a table with their classes, in its order."""
    with warnings.catch_warnings(action="ignore"):
        source, _ = open_data(path, test=path, **options)
    return texts(source), [source.classes[label] for label in source.labels]


def test_the_same_rows_in_every_format(tmp_path: Path) -> None:
    objects = [{"text": text, "label": label} for text, label in ROWS]
    written = [
        write_csv(tmp_path / "a.csv", ROWS),
        write_csv(tmp_path / "a.tsv", ROWS, delimiter="\t"),
        write(tmp_path / "a.json", json.dumps(objects)),
        write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in objects)),
        write(tmp_path / "wide.CSV", (tmp_path / "a.csv").read_bytes().decode(), "utf-16"),
    ]
    for path in written:
        options = {"encoding": "utf-16"} if path.suffix == ".CSV" else {}
        assert every(path, **options) == ([text for text, _ in ROWS], [label for _, label in ROWS])
    train, test = open_data(written[0], test_fraction=0.5)
    assert isinstance(train, TextSource)
    assert (len(train), len(test), train.classes) == (2, 2, ("card", "pay"))


def test_a_row_says_where_it_is(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("one", "x"), ("two\nlines", "x"), ("three", "y")], "text,category")
    train, test = open_data(path)
    described = {part.load(i): part.describe(i) for part in (train, test) for i in range(len(part))}
    assert described == {"one": f"{path} line 2", "two\nlines": f"{path} line 4", "three": f"{path} line 5"}


def test_columns_by_name_and_as_told(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("n", "hello", "k", "3"), ("m", "bye", "l", "3")], "note,sentence,y,n")
    with pytest.raises(
        DataError, match=r"a\.csv needs the columns text or file and class \(or label\); it has note, s"
    ):
        open_data(path)
    columns = {"text": "sentence", "label": "y"}
    assert every(path, columns=columns) == (["hello", "bye"], ["k", "l"])
    with pytest.raises(DataError, match=r"has no column 'sentense', told for text. Did you mean 'sentence'\?"):
        open_data(path, columns={"text": "sentense", "label": "y"})
    for header in ("Text,Intent", "TEXT,Category", "text,class"):
        assert every(write_csv(tmp_path / "b.csv", ROWS, header))[1] == ["card", "card", "pay", "pay"]


def test_columns_that_could_be_either(tmp_path: Path) -> None:
    both = write_csv(tmp_path / "a.csv", [("t", "f.png", "x"), ("u", "g.png", "x")], "text,file,label")
    with pytest.raises(DataError, match=r"has texts \(text\) and image files \(file\): say which"):
        open_data(both)
    assert open_data(both, columns={"text": "text"})[0].modality == "text"
    with pytest.raises(DataError, match=r"has category and intent, any of which may be the label"):
        open_data(write_csv(tmp_path / "b.csv", [("t", "x", "y")], "text,intent,category"))
    with pytest.raises(DataError, match="has the column 'label' twice"):
        open_data(write_csv(tmp_path / "c.csv", [("t", "x", "y")], "text,label,label"))


def test_a_column_with_another_name_is_guessed_at(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("t", "x")], "text,lable")
    with pytest.raises(DataError, match=r"columns=\{'label': 'lable'\} \(--column label=lable\)"):
        open_data(path)
    path = write_csv(tmp_path / "b.csv", [("t", "x")], "sentence,label")
    with pytest.raises(DataError, match=r"columns=\{'text': '…'\} \(--column text=…\)"):
        open_data(path)


def test_a_table_as_one_task_is_training_data_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "monday.csv", ROWS, "sentence,label")
    task = Task.from_folder(path, columns={"text": "sentence"})
    assert (task.name, task.classes, task.test) == ("monday", ("card", "pay"), None)
    assert texts(task.train) == [text for text, _ in ROWS]
    assert repr(task) == "<Task 0 'monday': 2 classes, 4 texts, no test texts>"
    both = [(*row, part) for row, part in zip(ROWS, ("train", "test", "train", "val"), strict=True)]
    split = Task.from_folder(write_csv(tmp_path / "a.csv", both, "text,label,split"))
    assert split.test is not None and (len(split.train), len(split.test)) == (2, 1)
    alone = Task.from_folder(write_csv(tmp_path / "b.csv", [(*row, "train") for row in ROWS], "text,label,split"))
    assert (len(alone.train), alone.test) == (4, None)
    other = Task.from_folder(
        path, columns={"text": "sentence"}, test=write_csv(tmp_path / "c.csv", [("p", "pay")], "sentence,label")
    )
    assert other.test is not None and texts(other.test) == ["p"]
    with pytest.raises(DataError, match="has only the split test"):
        Task.from_folder(write_csv(tmp_path / "d.csv", [("a", "x", "test")], "text,label,split"))


def test_class_numbers_beside_names_give_the_order(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("t", "ape", 1), ("u", "zoo", 0), ("v", "ape", 1)], "text,class,label")
    assert open_data(path)[0].classes == ("zoo", "ape")
    other = write_csv(tmp_path / "c.csv", [("w", "emu", 2), ("x", "zoo", 0)], "text,class,label")
    assert open_data(path, test=other)[0].classes == ("zoo", "ape", "emu")
    clash = write_csv(tmp_path / "d.csv", [("w", "ape", 2)], "text,class,label")
    with pytest.raises(DataError, match=r"d\.csv: class 'ape' has label 2 here and 1 before"):
        open_data(path, test=clash)
    wrong = write_csv(tmp_path / "b.csv", [("t", "ape", "big"), ("u", "ape", "big")], "text,class,label")
    with pytest.raises(
        DataError, match=r"line 2: the label 'big' is not a whole number .*columns=\{'label': 'label'\}"
    ):
        open_data(wrong)
    assert open_data(wrong, columns={"label": "label"})[0].classes == ("big",)


def test_split_domain_and_time(tmp_path: Path) -> None:
    rows = [
        ("d", "x", "home", "train", "2024-03-01"),
        ("a", "y", "work", "train", "2024-01-01T08:00:00"),
        ("v", "x", "home", "val", "2024-01-01T00:00:00+01:00"),
        ("t", "y", "home", "TEST", "2025-01-01"),
    ]
    path = write_csv(tmp_path / "a.csv", rows, "text,label,domain,split,time")
    train, validation, test = open_splits(path)
    assert (texts(train), texts(test)) == (["a", "d"], ["t"])  # in the order of time
    assert validation is not None and texts(validation) == ["v"]
    assert train.times is not None and train.times.tolist() == [1704096000.0, 1709251200.0]
    assert validation.times is not None and validation.times.tolist() == [1704063600.0]
    assert train.domains is not None
    assert [train.domain_names[i] for i in train.domains] == ["work", "home"]
    assert train.select([1]).times.tolist() == [1709251200.0]  # type: ignore[union-attr]
    numbers = write_csv(tmp_path / "b.csv", [("b", "x", 2.5), ("a", "x", 1), ("c", "y", 3)], "text,label,time")
    assert every(numbers)[0] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a", "x", "train"), ("b", "x", "trian")], "text,label,split", "line 3: unknown split 'trian'"),
        ([("a", "x", "train")], "text,label,split", "has only the split train; it needs train and test"),
        ([("a", "")], "text,label", "line 2: the column label is empty"),
        ([("a", " "), ("b", "x")], "text,label", "line 2: the column label is empty"),
        ([("a", "x", "noon")], "text,label,time", "line 2: the column time holds 'noon', not a number or a date"),
        ([("a", "x", "nan")], "text,label,time", "line 2: the column time holds 'nan'"),
        ([("a", "x", 3), ("b", "x", "2024-01-01")], "text,label,time", "line 3: .*not a number as in the rows before"),
        ([("a", "x", "more")], "text,label", "line 2 has 3 cells, the header 2. Put cells that hold a delimiter"),
        ([], "text,label", "lists no texts"),
        ([("a", "3"), ("b", "4"), ("c", "cat")], "text,label", r"mixes .*: line 2 has '3', line 4 has 'cat'"),
        ([("a", "Cat"), ("b", "cat"), ("c", "dog")], "text,label", r"'Cat' \(1 rows\), 'cat' \(1 rows\)"),
        ([("a", "cat "), ("b", "cat")], "text,label", "differ only in case or blanks"),
        ([("../x.png", "a")], "file,label", r"line 2: the file is named '../x.png': only relative names"),
        ([("/etc/passwd", "a")], "file,label", "only relative names without '..' are read"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[Any], header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(write_csv(tmp_path / "a.csv", rows, header))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a", "label": 1}, {"text": "b", "label": "x"}]', r"mixes .*: row 0 has 1, row 1 has 'x'"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}', "line 2 has no key 'label'"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": ', "line 2 is not JSON"),
        ('{"text": "a", "label": "x"}\n[1, 2]', r"line 2 is \[1, 2\], not an object"),
        ('{"text": 3, "label": "x"}', "line 1: the column text holds 3, not a text"),
        ('{"text": "a", "label": null}', "line 1: the column label is empty"),
        ('{"text": "a", "label": 2.5}', "line 1: the column label holds 2.5, not a name or a whole number"),
        ('{"text": "a", "label": true}', "line 1: the column label holds True, not a name"),
        ('{"text": "\\ud800", "label": "x"}', "not whole characters"),
        ("[1", "is not JSON"),
        ("", "needs the columns text or file .* it has nothing"),
    ],
)
def test_json_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    for suffix in ("json", "jsonl"):
        with pytest.raises(DataError, match=message):
            open_data(write(tmp_path / f"a.{suffix}", text))


def test_numbers_as_names_when_asked(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("a", "3"), ("b", "10"), ("c", "cat")])
    assert sorted(every(path, numbers_as_names=True)[1]) == ["10", "3", "cat"]
    mixed = write(tmp_path / "a.jsonl", '{"text": "a", "label": 3}\n{"text": "b", "label": "3"}\n')
    assert every(mixed, numbers_as_names=True) == (["a", "b"], ["3", "3"])
    plain = write_csv(tmp_path / "b.csv", [("a", "10"), ("b", "9"), ("c", "9")])
    assert open_data(plain)[0].classes == ("9", "10")


def test_labels_made_one_take_the_most_frequent_spelling(tmp_path: Path) -> None:
    rows = [("a", "Cat"), ("b", "cat "), ("c", "Cat"), ("d", "dog"), ("e", "DOG"), ("f", "DOG")]
    path = write_csv(tmp_path / "a.csv", rows)
    assert every(path, normalise_labels=True)[1] == ["Cat", "Cat", "Cat", "DOG", "DOG", "DOG"]
    assert len(open_data(path, normalise_labels=False)[0].classes) == 4
    other = write_csv(tmp_path / "b.csv", [("g", "CAT")])
    with pytest.raises(DataError, match="'CAT'"):  # also where one spelling is in train and the other in test
        open_data(write_csv(tmp_path / "c.csv", rows[:1]), test=other)


def test_empty_texts_are_named_or_left_out(tmp_path: Path) -> None:
    rows = [("", "x"), (" \t", "x"), *((f"text {i}", "x") for i in range(4)), *((f"more {i}", "y") for i in range(4))]
    path = write_csv(tmp_path / "a.csv", rows)
    with pytest.raises(DataError, match=r"2 rows of .*a\.csv cannot be used:\n  .*line 2: the column text is empty"):
        open_data(path)
    train, test = open_data(path, skip_bad=True)
    assert len(train) + len(test) == 8
    assert [reason.removeprefix(str(path)) for reason in train.skipped] == [
        " line 2: the column text is empty",
        " line 3: the column text is empty",
    ]


def test_other_encodings_are_named_with_their_place(tmp_path: Path) -> None:
    text = "text,label\nplain,x\nüber,y\n"
    path = write(tmp_path / "a.csv", text, "latin-1")
    byte = text.index("ü")
    with pytest.raises(DataError, match=rf"a\.csv is not text in UTF-8: line 3, byte {byte} .*encoding='latin-1'"):
        open_data(path)
    assert every(path, encoding="latin-1")[0] == ["plain", "über"]
    with pytest.raises(DataError, match=r"line 1, byte 0 .*encoding='utf-16'"):
        open_data(write(tmp_path / "b.csv", text, "utf-16"))
    late = write(
        tmp_path / "c.jsonl", '{"text": "a", "label": "x"}\n' * 50_000 + '{"text": "ü", "label": "x"}', "cp1252"
    )
    with pytest.raises(DataError, match="line 50001, byte 1400010 "):
        open_data(late)


def test_classes_of_one_row_each_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: no class has a second row that could be held out for testing"):
        open_data(write_csv(tmp_path / "a.csv", [("a", "x"), ("b", "y")]))


def test_train_and_test_in_two_files(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", [("a", "9"), ("b", "10")])
    test = write(tmp_path / "b.jsonl", '{"text": "c", "label": "10"}\n')
    one, other = open_data(train, test=test)
    assert one.classes == other.classes == ("9", "10")
    assert other.labels.tolist() == [1]
    marked = write_csv(tmp_path / "c.csv", [("a", "9", "train"), ("z", "9", "test")], "text,label,split")
    assert texts(open_data(marked, test=test)[0]) == ["a"]
    with pytest.raises(DataError, match=r"c\.csv was given as validation and says that its rows are"):
        open_data(train, validation=marked, test=test)


def test_a_text_in_train_and_test_is_warned_of(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", [("a", "x"), ("b", "y"), ("a", "x")])
    with pytest.warns(UserWarning, match=r"a\.csv: 2 of 3 training texts are in the test part too"):
        open_data(train, test=write_csv(tmp_path / "b.csv", [("a", "x"), ("c", "y")]))


def test_tables_of_image_files(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"x": 3, "y": 3})
    rows = [(f"photos/{c}/{i}.png", c) for c in "yx" for i in range(3)]
    path = write_csv(tmp_path / "a.csv", rows, "path,label")
    train, test = open_data(path)
    assert isinstance(train, FileSource)
    assert (train.classes, train.counts().tolist(), test.counts().tolist()) == (("x", "y"), [2, 2], [1, 1])
    assert train.load(0).size == (12, 10)
    assert train.describe(0).startswith(f"{tmp_path}/photos/y/")
    inner = write_csv(tmp_path / "b.csv", [(f"{c}/{i}.png", c) for c in "xy" for i in range(3)], "image,label")
    with pytest.raises(DataError, match=r"6 of the files in .* cannot be used:\n.*x/0\.png cannot be opened"):
        open_data(inner)
    assert open_data(inner, root=root)[0].load(0).size == (12, 10)
    (root / "x" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x/0\.png: it is not an image"):
        open_data(inner, root=root)
    lazy = open_data(inner, root=root, verify=False)
    assert sum(map(len, lazy)) == 6
    assert sum(map(len, open_data(inner, root=root, skip_bad=True))) == 5


def test_a_link_in_the_folder_of_a_table_may_not_lead_outside(make_images: Callable[..., Path], tmp_path: Path) -> None:
    secret = make_images({"a": 1}, root="secret")
    home = tmp_path / "home"
    home.mkdir()
    (home / "x.png").symlink_to(secret / "a" / "0.png")
    (home / "folder").symlink_to(secret)
    for name in ("x.png", "folder/a/0.png"):
        path = write_csv(home / "a.csv", [(name, "a"), (name, "a")], "file,label")
        with pytest.raises(DataError, match="is a link that leads outside"):
            open_data(path)
        with pytest.raises(DataError, match="is a link that leads outside"):
            open_data(path, verify=False)[0].load(0)
        assert open_data(path, follow_links=True)[0].load(0).size == (12, 10)


def test_digests_follow_texts_not_place_or_format(tmp_path: Path) -> None:
    one, _ = open_data(write_csv(tmp_path / "a.csv", ROWS))
    objects = [{"label": label, "text": text} for text, label in ROWS]
    two, _ = open_data(write(tmp_path / "b.json", json.dumps(objects)))
    three, _ = open_data(write_csv(tmp_path / "c.csv", [*ROWS[:-1], ("Uberweisung", "pay")]))
    assert one.digest == two.digest
    assert {one.digest} != {three.digest, open_data(tmp_path / "c.csv")[1].digest}


def test_texts_in_memory() -> None:
    source = TextSource(["a b", "ü"], ["y", "x"], domains=["home", "work"], name="mails")
    assert (texts(source), source.classes, source.labels.tolist()) == (["a b", "ü"], ("x", "y"), [1, 0])
    assert (source.describe(1), source.identify(1), source.content(1)) == ("mails row 1", "1", "ü".encode())
    assert source.domain_names == ("home", "work")
    assert texts(source.select([1])) == ["ü"]
    assert repr(source) == "<TextSource 'mails': 2 texts, 2 classes>"
    train, test = open_data(TextSource([f"t{i}" for i in range(10)], [0] * 5 + [1] * 5))
    assert (train.counts().tolist(), test.counts().tolist()) == ([4, 4], [1, 1])


@pytest.mark.parametrize(
    ("items", "labels", "message"),
    [
        (["a", " "], [0, 1], r"1 of 2 texts are empty \(rows 1\)"),
        (["a", 3], [0, 1], "row 1 is of type int, not a text"),
        ("ab", [0, 1], "one text is a list of one"),
        (["a", "b"], [0], "1 for 2 texts"),
        (["a", "b"], [0, "x"], "mix names and numbers: row 1 has 'x', row 0 has 0"),
        (["a", "\ud800"], [0, 1], "half a surrogate pair"),
    ],
)
def test_texts_that_cannot_be_used(items: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextSource(items, labels)


def test_strings_are_a_sequence_of_str() -> None:
    items = ["", "a", "ü€𝄞", "line\nline"] * 3
    strings = Strings.of(items)
    assert (list(strings), len(strings), strings[-1], strings.raw(2)) == (items, 12, items[-1], items[2].encode())
    assert list(strings[2:9:2]) == items[2:9:2]
    assert list(strings.take(np.array([5, 0, 5]))) == [items[5], items[0], items[5]]
    assert "a" in strings and "b" not in strings
    assert list(Strings.of([])) == []


def test_a_long_table_takes_little_memory(tmp_path: Path) -> None:
    count = 10_000
    path = write_csv(
        tmp_path / "a.csv", [(f"a text of some words, number {i}", f"class {i % 100}") for i in range(count)]
    )
    open_data("digits")
    tracemalloc.start()
    train, test = open_data(path)
    stream = Stream.class_incremental(train, test, first=1, increment=1)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(stream), sum(len(task.train) for task in stream)) == (100, len(train))
    assert held < 150 * count  # bytes; the texts are 37 of them
    assert peak < 250 * count


@pytest.mark.real
def test_banking77_as_published(shared: Path) -> None:
    train, test = open_data(shared / "data/text/banking77_train.csv", test=shared / "data/text/banking77_test.csv")
    assert (len(train), len(test), len(train.classes)) == (10003, 3080, 77)
    assert train.load(0) == "I am still waiting on my card?"
    assert train.classes[train.labels[0]] == "card_arrival"
    with (shared / "data/text/banking77_test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert texts(test) == [row["text"] for row in rows]
    assert [test.classes[label] for label in test.labels] == [row["category"] for row in rows]
