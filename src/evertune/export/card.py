"""The card of a learner: a README that tells what it is, what it knows, what it keeps, and how to load it."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evertune.errors import ExportError, StorageError
from evertune.learner.keeping import described
from evertune.methods import METHODS
from evertune.methods.stored import UNSAID

if TYPE_CHECKING:
    from evertune.learner import Learner, LearnerFolder

SHOWN = 50
"""Classes that are named; the others are counted."""
PLACE = "OWNER/NAME"
"""Stands for the repository where it is not known."""


def model_card(
    learner: Learner,
    *,
    license: str | None = None,
    results: Mapping[str, float | str] | None = None,
    repo: str | None = None,
) -> str:
    """The README.md of a repository that holds this learner: YAML for the hub, then Markdown for people.

    Parameters
    ----------
    license
        Under which the learner is given away, as the hub calls it ("apache-2.0"). Nothing is said without.
    results
        What was measured, by name. Nothing is said without: a learner does not know how good it is.
    repo
        Where it will be, for the lines that load it.

    Raises
    ------
    ExportError
        huggingface_hub is missing, or the license is not one line of text.
    """
    return card_of(described(learner), license=license, results=results, repo=repo)


def card_of(
    content: Mapping[str, Any],
    *,
    dates: Mapping[int, str] | None = None,
    license: str | None = None,
    results: Mapping[str, float | str] | None = None,
    repo: str | None = None,
) -> str:
    """As :func:`model_card`, of what learner.json says; ``dates`` tells when there were so many tasks first."""
    count = len(content["classes"])
    about = _plural(count, "class", "classes"), _plural(len(content["history"]), "task", "tasks")
    parts = [
        f"# A learner of {about[0]}",
        "A continual learner made with evertune: a frozen backbone, a small trained part, and statistics kept instead "
        f"of data. It has learned {about[1]}, one after the other, and can learn more without the data of these.",
        *_section("Use it", _use(content, repo or PLACE)),
        *_section("Method and backbone", _table(("", ""), _facts(content))),
        *_section(f"Classes ({count})", _classes(content["classes"])),
        *_section("Tasks, in the order of learning", _tasks(content["history"], dates or {})),
        *_section("What it keeps of the data", _kept(content.get("stored"))),
        *_section("Limits", _limits(content)),
        *(_section("Results", _table(("", ""), _results(results))) if results else []),
        *_section("Citation", METHODS[content["method"]].paper if content["method"] in METHODS else ""),
    ]
    return f"---\n{_front(content, license)}\n---\n\n" + "\n\n".join(parts) + "\n"


def dates_of(home: LearnerFolder, content: Mapping[str, Any]) -> dict[int, str]:
    """When there were so many tasks for the first time, as far as the versions that led to this one tell."""
    dates: dict[int, str] = {}
    with suppress(StorageError):  # removed by now
        while content["history"]:
            count = len(content["history"])
            before = None if content["before"] is None else home.content(content["before"])
            fewer = 0 if before is None else len(before["history"])
            if fewer > count:  # a task was forgotten, so the numbers before are of others
                break
            if fewer < count:
                dates[count] = content["saved"]
            if before is None:
                break
            content = before
    return dates


def inline(text: object) -> str:
    r"""Any text as one line of Markdown that means nothing but itself.

    >>> print(inline("a|b\n<script>"))
    a\|b \<script\>
    """
    joiners = "\u200c\u200d"
    plain = (c if c in joiners or unicodedata.category(c)[0] not in "CZ" else " " for c in str(text))
    line = " ".join("".join(plain).split())
    said = "".join(f"\\{c}" if c in string.punctuation and c not in "-,'" else c for c in line)
    return f"\\{said}" if said.startswith("-") else said or "(no name)"


def _front(content: Mapping[str, Any], license: str | None) -> str:
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise ExportError("A card needs the package huggingface_hub, which is missing: install it.") from error
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .+-]*", license):
        raise ExportError(f"license={license!r} is not what the hub calls a license, like 'apache-2.0' or 'other'.")
    base = _base_model(content["backbone"]["name"])
    reads = "text" if "tokenizer" in content["backbone"] else "image"
    method = re.sub(r"[^a-z0-9]+", "-", content["method"].lower()).strip("-")
    data = hub.ModelCardData(
        library_name="evertune",
        pipeline_tag=f"{reads}-classification",
        tags=["continual-learning", "parameter-efficient-tuning", *([method] if method else [])],
        base_model=base,
        license=license,
    )
    return str(data.to_yaml()).strip()


def _base_model(name: str) -> str | None:
    """The hub's name of the backbone's weights, as far as the backbone's own name tells."""
    if name == "minilm":
        return "sentence-transformers/all-MiniLM-L6-v2"
    if name.startswith("hf:"):
        source = name.removeprefix("hf:")
        named = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source, re.ASCII) and not Path(source).exists()
        return source if named else None
    tagged = name.removeprefix("timm:")
    return f"timm/{tagged}" if re.fullmatch(r"\w+\.\w+", tagged, re.ASCII) else None


def _use(content: Mapping[str, Any], repo: str) -> list[str]:
    texts = "tokenizer" in content["backbone"]
    asked = '["My card has not arrived"]' if texts else '["photo.png"]'
    shown = '--text "My card has not arrived"' if texts else "photo.png"
    name = content["backbone"]["name"]
    where = "" if name == "embedded" else (
        "The backbone's weights are not in this repository. They are fetched by their name; where they came from a "
        "local file, give that: `Learner.load(folder, load_backbone(…, weights=…))`, `--weights FILE`. Other weights "
        "are refused."
    )  # fmt: skip
    python = f'import evertune\n\nfolder = evertune.pull("{repo}", "kept")\nlearner = evertune.Learner.load(folder)'
    return [
        f"```python\n{python}\nprint(learner.predict({asked}))\n```",
        f"```shell\nevertune pull {repo} kept\nevertune predict kept {shown}\n```",
        *([where] if where else []),
        "Nothing in it is pickled or executed when it is loaded.",
    ]


def _facts(content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    options, backbone = content["options"], content["backbone"]
    yield "method", f"{content['method']}, preset {content['preset']}"
    if "tuning" in options:
        own = ", ".join(f"{key} {value}" for key, value in options.get("tuning_options", {}).items())
        yield "tuning", f"{options['tuning']}{f' ({own})' if own else ''}, blocks {options.get('blocks', 'all')}"
    name = str(backbone["name"])
    folder = Path(name.removeprefix("hf:"))
    yield "backbone", folder.name if name.startswith("hf:") and (folder.is_absolute() or folder.exists()) else name
    yield "sha256 of its weights", str(backbone["weights"])
    for key in ("input_size", "preprocessing", "mean", "std", "pooling", "max_length"):
        if key in backbone:
            value = backbone[key]
            yield key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    yield "evertune", str(content["evertune"])


def _classes(names: Sequence[str]) -> list[str]:
    if not names:
        return ["None yet."]
    more = f" … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ["; ".join(map(inline, names[:SHOWN])) + more]


def _tasks(history: Sequence[Mapping[str, Any]], dates: Mapping[int, str]) -> list[str]:
    if not history:
        return ["None yet."]
    rows = [
        (str(number), entry["task"], entry["kind"], str(len(entry["new_classes"])), str(entry["examples"]))
        + ((dates.get(number, "")[:10],) if dates else ())
        for number, entry in enumerate(history, 1)
    ]
    return _table(("", "task", "kind", "new classes", "examples", *(["learned"] if dates else [])), rows)


def _kept(stored: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """What is stored of the data, summed up by what it is; most bytes first."""
    if not stored:
        return ["No examples. What else is kept of them was not noted when this was saved."]
    sizes: dict[str, int] = defaultdict(int)
    for one in stored:
        if one["bytes"] and not one["of_data"].startswith("nothing"):
            sizes[one["of_data"]] += one["bytes"]
    rows = sorted(((what, f"{size:,}") for what, size in sizes.items()), key=lambda row: -sizes[row[0]])
    examples = (
        "Whether examples are among what is unknown, only the method's author can tell; the names above are kept."
        if UNSAID in sizes
        else "No examples are kept, but the names above are."
    )
    return [*(_table(("kept", "bytes"), rows) if rows else []), examples]


def _limits(content: Mapping[str, Any]) -> list[str]:
    answers = "It answers every input with one of its classes, also inputs that belong to none of them."
    found = content.get("temperature")
    if found is None:
        sure = (
            "It is not calibrated: its probabilities order the classes and say little of how often an answer is right."
        )
    else:
        later = len(content["history"]) - found["tasks"]
        since = f", {_plural(later, 'task', 'tasks')} ago" if later > 0 else ""
        sure = (
            f"Its probabilities were calibrated (temperature {found['value']:.4g}) on "
            f"{_plural(found['examples'], 'example', 'examples')}{since}, and hold for inputs like those."
        )
    return [f"- {answers}\n- {sure}"]


def _results(results: Mapping[str, float | str]) -> Iterable[tuple[str, str]]:
    for name, value in results.items():
        yield str(name), str(value)


def _section(title: str, body: str | Sequence[str]) -> list[str]:
    parts = [body] if isinstance(body, str) else list(body)
    return [f"## {title}", *parts] if any(parts) else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([inline(cell) for cell in row] for row in rows)]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
