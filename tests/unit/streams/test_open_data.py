from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evertune.errors import ConfigError, DataError
from evertune.streams import FileSource, open_data, open_splits
from evertune.streams.listing import stratified_rows

MakeImages = Callable[..., Path]
ZipFolder = Callable[..., Path]


def names(source: object) -> list[str]:
    assert isinstance(source, FileSource)
    return list(source.files)


def test_train_and_test_folders(make_images: MakeImages) -> None:
    root = make_images({"train/dog": 2, "train/cat": 3, "test/cat": 1, "test/dog": 1})
    (root / "README.md").write_text("about these photos")
    (root / "train" / "cat" / ".DS_Store").write_text("ignored")
    train, test = open_data(root)
    assert train.classes == test.classes == ("cat", "dog")
    assert names(train) == [
        "train/cat/0.png",
        "train/cat/1.png",
        "train/cat/2.png",
        "train/dog/0.png",
        "train/dog/1.png",
    ]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert names(test) == ["test/cat/0.png", "test/dog/0.png"]
    assert train.load(0).mode == "RGB"
    assert train.describe(3) == f"{root}/train/dog/0.png"


def test_val_stands_in_for_a_missing_test_and_is_left_alone_beside_one(make_images: MakeImages) -> None:
    with_val = make_images({"Train/a": 1, "Train/b": 1, "val/a": 1, "val/b": 2}, root="one")
    assert names(open_data(with_val)[1]) == ["val/a/0.png", "val/b/0.png", "val/b/1.png"]
    both = make_images({"train/a": 1, "train/b": 1, "val/a": 1, "test/b": 1}, root="two")
    assert names(open_data(both)[1]) == ["test/b/0.png"]
    assert names(open_data(both)[0]) == ["train/a/0.png", "train/b/0.png"]


def test_a_class_may_be_called_train(make_images: MakeImages) -> None:
    train, _ = open_data(make_images({"bus": 5, "car": 5, "train": 5}))
    assert train.classes == ("bus", "car", "train")


def test_domain_level(make_images: MakeImages) -> None:
    root = make_images({f"{part}/{d}/{c}": 2 for part in ("train", "test") for d in ("sketch", "photo") for c in "ab"})
    train, test = open_data(root, domain_level=True)
    assert train.domain_names == test.domain_names == ("photo", "sketch")
    assert train.domains is not None
    assert train.domains.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert train.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_an_unsplit_folder_is_divided_class_by_class(make_images: MakeImages) -> None:
    root = make_images({"a": 10, "b": 20, "c": 1, "d": 2})
    train, test = open_data(root, test_fraction=0.3, seed=5)
    assert train.counts().tolist() == [7, 14, 1, 1]
    assert test.counts().tolist() == [3, 6, 0, 1]
    assert set(names(train)) | set(names(test)) == {
        f"{c}/{i}.png" for c, n in zip("abcd", (10, 20, 1, 2), strict=True) for i in range(n)
    }
    assert names(open_data(root, test_fraction=0.3, seed=5)[1]) == names(test)
    assert names(open_data(root, test_fraction=0.3, seed=6)[1]) != names(test)


def test_a_new_class_changes_the_split_of_no_other() -> None:
    old = ["cat"] * 20 + ["dog"] * 20
    new = old + ["ant"] * 20
    assert stratified_rows(old, 0.25, 0) == [row for row in stratified_rows(new, 0.25, 0) if row < 40]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_test_fraction_out_of_range(make_images: MakeImages, fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"test_fraction is .* between 0 and 1"):
        open_data(make_images({"a": 3, "b": 3}), test_fraction=fraction)


def test_a_zip_is_read_like_its_folder(make_images: MakeImages, zip_folder: ZipFolder) -> None:
    root = make_images({"train/a": 3, "train/b": 2, "test/a": 1, "test/b": 1})
    from_folder = open_data(root)
    for inside in ("", "photos/"):  # many programs put everything into one folder
        from_zip = open_data(zip_folder(root, inside))
        for one, other in zip(from_folder, from_zip, strict=True):
            assert names(one) == names(other)
            assert one.digest == other.digest
            assert one.load(1 % len(one)).tobytes() == other.load(1 % len(other)).tobytes()


def test_a_zip_opens_itself_anew_in_another_process(make_images: MakeImages, zip_folder: ZipFolder) -> None:
    train, _ = open_data(zip_folder(make_images({"a": 4, "b": 4})))
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301 - our own object, as a loader process receives it
    assert copy.load(0).tobytes() == train.load(0).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if train.load(1).size == (12, 10) and train.store._handle[0] == os.getpid() else 1)  # type: ignore[attr-defined]
    assert os.waitpid(child, 0)[1] == 0


def write_index(root: Path, text: str) -> Path:
    (root / "index.csv").write_text(text)
    return root


def test_index_decides_split_class_order_and_domain(make_images: MakeImages, zip_folder: ZipFolder) -> None:
    root = make_images({"x": 4, "y": 4, "unused": 2})
    header = "\ufefffile,split,label,class,domain\n"
    text = header + "x/0.png,train,1,dog,sketch\ny/0.png,train,0,emu,photo\nx/1.png,test,1,dog,photo\n"
    for path in (write_index(root, text), zip_folder(root), zip_folder(root, "photos/")):
        train, test = open_data(path)
        assert train.classes == ("emu", "dog")
        assert train.labels.tolist() == [1, 0]
        assert train.domain_names == ("sketch", "photo")
        assert names(test) == ["x/1.png"]
        assert test.domains is not None
        assert test.domains.tolist() == [1]


def test_index_without_labels_or_split(make_images: MakeImages) -> None:
    root = make_images({"x": 5, "y": 5})
    lines = [f"{c}/{i}.png,{c}" for c in "yx" for i in range(5)]
    train, test = open_data(write_index(root, "file,class\n" + "\n".join(lines)))
    assert train.classes == ("x", "y")
    assert test.counts().tolist() == [1, 1]
    by_number = [f"{c}/{i}.png,{n}" for c, n in (("y", 2), ("x", 10)) for i in range(5)]
    assert open_data(write_index(root, "file,label\n" + "\n".join(by_number)))[0].classes == ("2", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\nx/0.png,a\n", r"index.csv needs the columns file and class \(or label\); it has name, class"),
        ("file,class\n", "lists no files"),
        ("file,class\nx/0.png,\n", "line 2: the column class is empty"),
        ("file,class,split\nx/0.png,a,train\nx/1.png,a,tset\n", "unknown split 'tset'"),
        ("file,class,split\nx/0.png,a,train\n", "has only the split train"),
        ("file,class\nx/0.png,a\nx/0.png,b\n", "lists x/0.png twice"),
        ("file,class,label\nx/0.png,a,0\nx/1.png,a,1\n", "line 3: class 'a' has label 1 here and 0 before"),
        ("file,class,label\nx/0.png,a,0\nx/1.png,b,0\n", "line 3: label 0 means 'b' here and 'a' before"),
        ("file,class,label\nx/0.png,a,one\n", "line 2: the label 'one' is not a whole number"),
        ("file,class\n../../etc/passwd,a\n", "only relative names without '..' are read"),
        ("file,class\n/etc/passwd,a\n", "only relative names without '..' are read"),
        ("file,class\nC:/x.png,a\n", "only relative names"),
        ("file,class\nx/99.png,a\n", r"x/99.png cannot be opened \(No such file"),
    ],
)
def test_a_wrong_index_is_refused(make_images: MakeImages, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(write_index(make_images({"x": 2}), text))


def test_an_index_in_another_encoding(make_images: MakeImages) -> None:
    root = make_images({"x": 2})
    (root / "index.csv").write_bytes("file,class\nx/0.png,Bär\nx/1.png,Bär\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"index\.csv is not text in UTF-8: line 2, byte 20 .*encoding='latin-1'"):
        open_data(root)
    assert open_data(root, encoding="latin-1")[0].classes == ("Bär",)


def spoil(root: Path) -> None:
    (root / "train/cat/empty.png").touch()
    (root / "train/cat/notes.txt").write_text("not an image")
    (root / "train/dog/cut.png").write_bytes((root / "train/dog/0.png").read_bytes()[:50])
    (root / "test/cat/gone.png").symlink_to(root / "nowhere.png")


def test_bad_files_are_named_together(make_images: MakeImages) -> None:
    root = make_images({"train/cat": 2, "train/dog": 2, "test/cat": 1})
    spoil(root)
    with pytest.raises(DataError) as caught:
        open_data(root)
    message = str(caught.value)
    assert f"4 of the files in {root} cannot be used" in message
    assert f"{root}/train/cat/empty.png: the file is empty" in message
    assert "notes.txt: it is not an image" in message
    assert "cut.png: it is damaged" in message
    assert "gone.png cannot be opened" in message
    assert "--skip-bad" in message


def test_skip_bad_leaves_them_out_and_lists_them(make_images: MakeImages) -> None:
    root = make_images({"train/cat": 2, "train/dog": 2, "test/cat": 1})
    spoil(root)
    train, test = open_data(root, skip_bad=True)
    assert (len(train), len(test)) == (4, 1)
    assert [reason.split(": ")[0].removeprefix(f"{root}/") for reason in train.skipped] == [
        "train/cat/empty.png",
        "train/cat/notes.txt",
        "train/dog/cut.png",
    ]
    assert len(test.skipped) == 1


def test_of_many_bad_files_ten_are_named(make_images: MakeImages) -> None:
    root = make_images({"a": 1, "b": 1})
    for i in range(13):
        (root / "a" / f"bad{i:02d}.png").touch()
    with pytest.raises(DataError, match="13 of the files") as caught:
        open_data(root)
    assert str(caught.value).count("the file is empty") == 10
    assert "and 3 more" in str(caught.value)


def test_nothing_left_after_skipping(make_images: MakeImages) -> None:
    root = make_images({"a": 0})
    (root / "a" / "x.png").touch()
    with pytest.raises(DataError, match="holds no train images; 1 unusable files were left out"):
        open_data(root, skip_bad=True)


def test_a_file_that_breaks_only_when_read_is_named(make_images: MakeImages) -> None:
    root = make_images({"a": 2, "b": 2})
    train, _ = open_data(root)
    (root / names(train)[0]).unlink()
    with pytest.raises(DataError, match=names(train)[0]):
        train.load(0)


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ({}, {}, "is empty; put one folder of images per class into it"),
        ({"a": 2, "b": 0}, {}, "/b: the folder is empty"),
        ({"train/a": 2}, {}, "has a train folder but no test or val folder"),
        ({"train/a": 2, "test/a": 1, "extra/a": 1}, {}, "beside train and test there is also extra"),
        ({"photo/cat": 2}, {}, r"photo/cat/0.png lies deeper than <class>/<file>. If 'photo' is a domain, say so"),
        ({"cat": 2}, {"domain_level": True}, "cat/0.png lies outside any class folder; <domain>/<class>/<file> is"),
        ({"a/b/c/d/e/f": 1}, {}, "a/b/c/d/e lies deeper than <class>/<file>"),
    ],
)
def test_folders_that_cannot_be_understood(
    make_images: MakeImages, folders: dict[str, int], options: dict[str, bool], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(make_images(folders), **options)  # type: ignore[arg-type]


def test_a_folder_with_nothing_but_a_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(DataError, match="holds no <class>/<file>; put one folder of images per class into it"):
        open_data(tmp_path)


def test_an_image_outside_any_class(make_images: MakeImages) -> None:
    root = make_images({"a": 2, "b": 2})
    (root / "stray.JPG").write_bytes(b"?")
    with pytest.raises(DataError, match=r"stray\.JPG lies outside any class folder"):
        open_data(root)


def test_links_that_lead_in_circles_end(make_images: MakeImages) -> None:
    root = make_images({"a": 2, "b": 2})
    (root / "a" / "again").symlink_to(root)
    with pytest.raises(DataError, match="lies deeper than"):
        open_data(root)


def test_links_are_followed_within_the_folder_and_outside_when_allowed(make_images: MakeImages) -> None:
    elsewhere = make_images({"c": 3}, root="elsewhere")
    root = make_images({"a": 3})
    (root / "b").symlink_to(root / "a")
    assert open_data(root)[0].classes == ("a", "b")
    (root / "c").symlink_to(elsewhere / "c")
    with pytest.raises(DataError, match=r"photos/c is a link that leads outside .*photos, to .*elsewhere/c"):
        open_data(root)
    assert open_data(root, follow_links=True)[0].classes == ("a", "b", "c")
    (root / "c").unlink()
    (root / "a" / "secret.png").symlink_to(elsewhere / "c" / "0.png")
    with pytest.raises(DataError, match=r"secret\.png is a link that leads outside"):
        open_data(root)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("a/0.png")
        link.external_attr = 0o120777 << 16  # a symbolic link, as Info-ZIP writes it
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"x\.zip: a/0\.png is a link"):
        open_data(tmp_path / "x.zip")


@pytest.mark.parametrize("member", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "a\\evil.png"])
def test_zip_members_that_lead_outside_are_refused(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(DataError, match=r"x\.zip: a member is named .* only relative names"):
        open_data(tmp_path / "x.zip")


def test_zips_that_cannot_be_read(make_images: MakeImages, zip_folder: ZipFolder, tmp_path: Path) -> None:
    path = zip_folder(make_images({"a": 3, "b": 3}))
    content = bytearray(path.read_bytes())
    content[300] ^= 255  # inside the pixels of the first member: its checksum no longer fits
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a/0\.png cannot be unpacked \(Bad CRC"):
        open_data(path)
    path.write_bytes(content[:500])
    with pytest.raises(DataError, match="cannot be read as a zip file"):
        open_data(path)
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"none\.zip is empty"):
        open_data(tmp_path / "none.zip")


def test_a_zip_with_one_member_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/0.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/0.png", b"2")
    with pytest.raises(DataError, match=r"holds a/0\.png more than once"):
        open_data(tmp_path / "x.zip")


def test_a_zip_bomb_is_not_unpacked(
    make_images: MakeImages, zip_folder: ZipFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evertune.streams.files._LARGEST", 100)
    with pytest.raises(DataError, match="refused as a zip bomb"):
        open_data(zip_folder(make_images({"a": 3, "b": 3})))


def test_a_zip_is_held_to_what_all_of_it_would_unpack_to(
    make_images: MakeImages, zip_folder: ZipFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = zip_folder(make_images({"a": 3, "b": 3}))
    monkeypatch.setattr("evertune.streams.files._MOST", 1000)
    with pytest.raises(DataError, match=r"data\.zip would unpack to .* MiB, more than"):
        open_data(path)
    monkeypatch.undo()
    monkeypatch.setattr("evertune.streams.files._RATIO_FROM", 1000)
    open_data(path)  # stored as it is: nothing grows
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(10**6))
    with pytest.raises(DataError, match=r"zeros\.zip would unpack to \d{3} times its size"):
        open_data(tmp_path / "zeros.zip")


def test_an_image_of_more_pixels_than_allowed(make_images: MakeImages) -> None:
    root = make_images({"a": 2, "b": 2}, size=(40, 30))
    with pytest.raises(DataError, match=r"a/0\.png: it would unpack to more than 1199 pixels; .*max_pixels"):
        open_data(root, max_pixels=1199)
    assert len(open_data(root, max_pixels=1200)[0]) == 2
    with pytest.raises(DataError, match="more than 1199 pixels"):
        open_data(root, max_pixels=1199, verify=False)[0].load(0)


def test_validation_is_kept_apart_from_test(make_images: MakeImages) -> None:
    splits = open_splits(make_images({"train/a": 4, "train/b": 4, "val/a": 1, "test/b": 1}))
    assert splits.validation is not None
    assert (names(splits.validation), names(splits.test)) == (["val/a/0.png"], ["test/b/0.png"])
    drawn = open_splits(make_images({"a": 10, "b": 10}, root="other"), test_fraction=0.2, validation_fraction=0.25)
    assert drawn.validation is not None
    assert [part.counts().tolist() for part in (drawn.train, drawn.validation, drawn.test)] == [[6, 6], [2, 2], [2, 2]]
    assert not set(names(drawn.train)) & set(names(drawn.validation))


def test_parts_in_folders_of_their_own(make_images: MakeImages, zip_folder: ZipFolder) -> None:
    train = make_images({"cat": 3, "dog": 3}, root="learn")
    test = zip_folder(make_images({"dog": 2}, root="check"))
    one, other = open_data(train, test=test)
    assert one.classes == other.classes == ("cat", "dog")
    assert (one.counts().tolist(), other.counts().tolist()) == ([3, 3], [0, 2])
    assert other.labels.tolist() == [1, 1]


def test_classes_that_differ_in_case_or_blanks(make_images: MakeImages) -> None:
    root = make_images({"cat": 4, "Cat ": 2, "dog": 3})
    with pytest.raises(DataError, match=r"differ only in case or blanks:\n  'Cat ' \(2 rows\), 'cat' \(4 rows\)"):
        open_data(root)
    assert open_data(root, normalise_labels=True)[0].classes == ("cat", "dog")
    assert open_data(root, normalise_labels=False)[0].classes == ("Cat ", "cat", "dog")


def test_options_that_do_not_exist_or_fit() -> None:
    with pytest.raises(ConfigError, match=r"columns names 'txt', which no column is for. Did you mean 'text'\?"):
        open_data("digits", columns={"txt": "a"})
    with pytest.raises(ConfigError, match="encoding 'utf8000' is not known"):
        open_data("digits", encoding="utf8000")
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        open_data("digits", max_pixels=0)
    with pytest.raises(ConfigError, match="without a test part"):
        open_data("digits", validation="digits")
    with pytest.raises(TypeError, match="skip_worst"):
        open_data("digits", skip_worst=True)  # type: ignore[call-arg]


def test_what_does_not_exist_or_is_of_no_known_kind(tmp_path: Path) -> None:
    for spec in (tmp_path / "nothing", "./nothing", "nothing.npz", Path("nothing")):
        with pytest.raises(DataError, match=r"nothing.* does not exist"):
            open_data(spec)
    (tmp_path / "x.doc").touch()
    with pytest.raises(DataError, match=r"x\.doc is not a kind of data that is known"):
        open_data(tmp_path / "x.doc")


def test_digests_follow_content_not_place(make_images: MakeImages) -> None:
    one, _ = open_data(make_images({"a": 3, "b": 3}, root="one"))
    two, _ = open_data(make_images({"a": 3, "b": 3}, root="two"))
    assert one.digest == two.digest
    file = two.store.path / names(two)[0]  # type: ignore[attr-defined]
    file.write_bytes(file.read_bytes() + b"\0")
    assert open_data(two.store.path)[0].digest != one.digest  # type: ignore[attr-defined]
    assert isinstance(np.asarray(one.load(0)), np.ndarray)
