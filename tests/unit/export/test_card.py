"""The card of a learner: valid for the hub, and nothing that a name says becomes Markdown or YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evertune import Learner, LearnerFolder, Task
from evertune.backbones import TimmViT
from evertune.errors import ExportError
from evertune.export.card import SHOWN, card_of, dates_of, inline, model_card
from evertune.learner import Temperature
from evertune.methods import METHODS
from evertune.methods.stored import UNSAID
from evertune.streams import ArraySource

Blobs = tuple[ArraySource, ArraySource]
HOSTILE = ["- a", "1. b", "| c |", "`d`\n---\n", "<script>e</script>", "[f](http://g.example)", "# h", "\u202ei", "***"]


@pytest.fixture(scope="module")
def learner(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource]) -> Learner:
    learner = Learner("simple_cil", tiny, device="cpu", progress=False)
    learner.learn(Task(0, "first: 'a' | b", blobs[0]))
    return learner


def said(learner: Learner, **options: Any) -> tuple[dict[str, Any], str]:
    """The front matter and the body, as the hub reads them."""
    card = ModelCard(model_card(learner, **options))
    return card.data.to_dict(), card.text


def test_the_front_matter_is_what_the_hub_expects(learner: Learner) -> None:
    data, text = said(learner)
    assert data == {
        "library_name": "evertune",
        "pipeline_tag": "image-classification",
        "tags": ["continual-learning", "parameter-efficient-tuning", "simple-cil"],
    }
    assert said(learner, license="apache-2.0")[0]["license"] == "apache-2.0"
    assert "# A learner of 6 classes" in text and "spot 0; spot 1" in text
    assert learner.backbone.identity.weights in text and "2303.07338" in text
    assert "class means, as sums" in text and "not calibrated" in text and "Results" not in text


def test_what_the_caller_knows_is_told(learner: Learner) -> None:
    _, text = said(learner, results={"final accuracy": 0.875, "a|b": "3 of 4"}, repo="me/spots")
    assert r"| final accuracy | 0\.875 |" in text and r"| a\|b | 3 of 4 |" in text
    assert 'evertune.pull("me/spots", "kept")' in text and "evertune pull me/spots kept" in text
    learner.temperature = Temperature(0.25, 1, 40)
    try:
        assert r"calibrated (temperature 0.25) on 40 examples" in said(learner)[1]
    finally:
        learner.temperature = None


def test_the_lines_that_load_it_are_python(learner: Learner) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", said(learner)[1], re.S)
    compile(code, "card", "exec")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_line_and_means_nothing(name: str) -> None:
    line = inline(name)
    assert "\n" not in line and "\u202e" not in line
    assert not re.search(r"(?<!\\)[|<>\[\]`*#_]", line)
    assert not re.match(r"[-+*#>]|\d+[.)]", line)


def test_hostile_names_leave_the_card_whole(learner: Learner) -> None:
    content = card_content(learner) | {"classes": HOSTILE}
    content["history"] = [content["history"][0] | {"task": "a | b\n---\nlicense: mit\n---\n"}]
    card = ModelCard(card_of(content))
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert next(line for line in card.text.splitlines() if line.startswith("#")) == "# A learner of 9 classes"
    assert "license: mit" not in card.text.splitlines() and "<script>" not in card.text
    (row,) = [line for line in card.text.splitlines() if line.startswith("| 1 ")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_many_classes_are_counted(learner: Learner) -> None:
    text = card_of(card_content(learner) | {"classes": [f"c{i}" for i in range(SHOWN + 7)]})
    assert f"c{SHOWN - 1} … and 7 more" in text and f"c{SHOWN}" not in text


@pytest.mark.parametrize(
    ("backbone", "base"),
    [
        ({"name": "vit_tiny_patch16_224.augreg_in21k"}, "timm/vit_tiny_patch16_224.augreg_in21k"),
        ({"name": "vit_tiny_patch16_224"}, None),  # whose weights came from a file
        ({"name": "embedded"}, None),
        ({"name": "minilm", "tokenizer": "t"}, "sentence-transformers/all-MiniLM-L6-v2"),
        ({"name": "hf:google-bert/bert-base-uncased", "tokenizer": "t"}, "google-bert/bert-base-uncased"),
        ({"name": "hf:/home/me/secret/bert", "tokenizer": "t"}, None),
    ],
)
def test_the_base_model_is_named_where_its_name_tells(
    learner: Learner, backbone: dict[str, str], base: str | None
) -> None:
    card = ModelCard(card_of(card_content(learner) | {"backbone": backbone | {"weights": "0" * 64}}))
    assert card.data.to_dict().get("base_model") == base
    assert card.data.pipeline_tag == ("text-classification" if "tokenizer" in backbone else "image-classification")
    assert "/home/me" not in card.text


def test_dates_come_from_the_versions(learner: Learner, tmp_path: Path) -> None:
    home = LearnerFolder(tmp_path)
    learner.save(tmp_path)
    learner.save(tmp_path)
    content = home.content()
    first, second = home.versions()
    assert dates_of(home, content) == {1: first.saved}
    assert first.saved[:10] in card_of(content, dates={1: first.saved}) and second.number == 2


def test_what_was_forgotten_has_no_date_and_makes_no_other_wrong(tiny: TimmViT, blobs: Blobs, tmp_path: Path) -> None:
    train, learner, home = blobs[0], Learner("simple_cil", tiny, device="cpu", progress=False), LearnerFolder(tmp_path)
    for t in range(3):
        names = [f"spot {2 * t}", f"spot {2 * t + 1}"]
        learner.learn(Task(t, f"part {t}", train.select(train.rows_of(names))))
        learner.save(tmp_path)
    learner.temperature = Temperature(0.25, 3, 40)
    assert set(dates_of(home, home.content())) == {1, 2, 3}
    learner.forget(task="part 1")
    assert learner.temperature == Temperature(0.25, 2, 40)
    learner.save(tmp_path)
    assert dates_of(home, home.content()) == {}
    assert "on 40 examples, and hold" in card_of(home.content())
    learner.save(tmp_path, keep=1)
    assert dates_of(home, home.content()) == {}


def test_a_method_that_does_not_say_what_it_keeps_is_not_spoken_for(learner: Learner) -> None:
    silent = [{"name": "memory", "bytes": 1, "of_data": UNSAID}]
    text = card_of(card_content(learner) | {"stored": silent})
    assert "unknown" in text and "No examples are kept" not in text


def test_a_license_is_a_name(learner: Learner) -> None:
    with pytest.raises(ExportError, match="is not what the hub calls a license"):
        model_card(learner, license="mit\ntags: [x]")


def test_a_method_of_a_paper_cites_it(learner: Learner) -> None:
    def cited(name: str) -> str:
        return card_of(card_content(learner) | {"method": name}).partition("## Citation")[2]

    ours = {name: method for name, method in METHODS.items() if method.__module__.startswith("evertune.")}
    assert all(method.paper in cited(name) for name, method in ours.items())
    assert {name for name in ours if "arxiv.org/abs/" not in cited(name)} == {"finetune", "linear_probe", "ridge_probe"}
    assert not cited("one that is not registered here")


def card_content(learner: Learner) -> dict[str, Any]:
    from evertune.learner.keeping import described

    return dict(described(learner))
