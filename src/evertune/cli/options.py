"""Options that more than one command takes, and what they are turned into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune import Learner
    from evertune.backbones import Backbone
    from evertune.engine import DiskCache
    from evertune.evaluation import ProtocolPreset

METHOD, BACKBONE, DATA, TRAINING, MACHINE, OUTPUT = "Method", "Backbone", "Data", "Training", "Machine", "Output"

MethodName = Annotated[
    str | None,
    typer.Option(
        "--method", "-m", metavar="NAME", help="What learns; 'evertune methods' lists them.", show_default="safe",
        rich_help_panel=METHOD,
    ),
]  # fmt: skip
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", metavar="NAME", help="Named settings of the method; 'evertune methods NAME' shows them.",
        show_default="the method's first", rich_help_panel=METHOD,
    ),
]  # fmt: skip
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE",
        help="Any option of the method, over the preset: --set rate=0.01. Those of its tuning are tuning.<name>: "
        "--set tuning=lora --set tuning.rank=4. May be given many times.",
        rich_help_panel=METHOD,
    ),
]  # fmt: skip
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        help="Images or texts per training step: short for --set batch_size=N.",
        rich_help_panel=METHOD,
    ),
]

BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone", "-b", metavar="NAME",
        help="The frozen transformer: 'embedded' (small, 32 px, needs no download) or a vision transformer of timm's, "
        "with its tag: vit_base_patch16_224.augreg_in21k. For texts 'minilm', or hf:FOLDER or hf:NAME of a BERT, "
        "DistilBERT, RoBERTa or XLM-R.",
        show_default="embedded", rich_help_panel=BACKBONE,
    ),
]  # fmt: skip
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", "-w", metavar="FILE",
        help="A local .safetensors or .pth file for --backbone, instead of timm's pre-trained weights. Nothing in it "
        "is executed.",
        rich_help_panel=BACKBONE,
    ),
]  # fmt: skip
InputSize = Annotated[
    int | None,
    typer.Option(
        "--input-size", metavar="PX", help="Image size the backbone sees; its position embedding is resampled.",
        show_default="its own", rich_help_panel=BACKBONE,
    ),
]  # fmt: skip
Preprocessing = Annotated[
    str | None,
    typer.Option(
        "--preprocessing", metavar="native|unit|imagenet|cifar",
        help="native: normalise with the checkpoint's mean and standard deviation. unit: inputs stay in [0, 1], the "
        "habit of the published SAFE, RanPAC, APER and SimpleCIL. imagenet, cifar: the mean and deviation of those.",
        show_default="native", rich_help_panel=BACKBONE,
    ),
]  # fmt: skip
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length", metavar="N", help="Tokens of a text that are read at most.",
        show_default="as the model was made", rich_help_panel=BACKBONE,
    ),
]  # fmt: skip
Pooling = Annotated[
    str | None,
    typer.Option(
        "--pooling", metavar="mean|cls", help="How the tokens of a text become one feature.",
        show_default="as the model was made", rich_help_panel=BACKBONE,
    ),
]  # fmt: skip
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate", help="Cut texts that are longer than the backbone reads at their end, instead of stopping.",
        rich_help_panel=DATA,
    ),
]  # fmt: skip

ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol", metavar="NAME",
        help="Measure as a paper or a peer does: its class order, pixels and preprocessing, and its number at the end; "
        "'evertune protocol list' lists them. What other options say still holds.",
        show_default="native, the library's own habits", rich_help_panel=DATA,
    ),
]  # fmt: skip
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out files that are no readable images and rows without text, and list them, instead "
        "of stopping.", rich_help_panel=DATA,
    ),
]  # fmt: skip
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="FOLDER", help="Where data sets by name are kept.",
        show_default="~/.cache/evertune/data, or scikit-learn's own place", rich_help_panel=DATA,
    ),
]  # fmt: skip
Download = Annotated[
    bool,
    typer.Option("--download", help="Allow a data set by name to be downloaded.", rich_help_panel=DATA),
]

CropScale = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--crop-scale", metavar="LOW HIGH",
        help="Share of an image's area that a random training crop covers. The default is the field's; where the "
        "whole object must stay in sight, as with digits, 0.6 1.0 is kinder.",
        show_default="0.05 1.0", rich_help_panel=TRAINING,
    ),
]  # fmt: skip
Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip", help="Mirror half of the training crops. Not for digits or letters.", show_default="flip",
        rich_help_panel=TRAINING,
    ),
]  # fmt: skip
TestResize = Annotated[
    int | None,
    typer.Option(
        "--test-resize", metavar="PX",
        help="At test time resize the short side to this and crop the centre.",
        show_default="resize both sides, no crop", rich_help_panel=TRAINING,
    ),
]  # fmt: skip
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", help="Initial values, augmentation and sampling. The class order has its own seed.",
        show_default="0", rich_help_panel=TRAINING,
    ),
]  # fmt: skip

Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="fp32|bf16", help="Of the backbone's passes; statistics and heads keep theirs.",
        rich_help_panel=MACHINE,
    ),
]  # fmt: skip
KeptPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="fp32|bf16", help="Of the backbone's passes; statistics and heads keep theirs.",
        show_default="as the learner has it, fp32 for a new one", rich_help_panel=MACHINE,
    ),
]  # fmt: skip
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1.", rich_help_panel=MACHINE)
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", min=0, help="Processes that decode images; 0 decodes in this one. Results do not "
        "depend on it.", rich_help_panel=MACHINE,
    ),
]  # fmt: skip
Pixels = Annotated[
    str,
    typer.Option(
        "--pixels", metavar="exact|fast",
        help="exact: decode an image whenever it is shown. fast: decode those of a task once, keep them while it is "
        "learned (up to 2 GiB), and crop whole batches on an accelerator. Results do not depend on it.",
        rich_help_panel=MACHINE,
    ),
]  # fmt: skip
EvalBatch = Annotated[
    int,
    typer.Option(
        "--eval-batch", metavar="N", min=1, help="Images or texts per batch where nothing is trained: memory against "
        "speed.", rich_help_panel=MACHINE,
    ),
]  # fmt: skip
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="FOLDER", help="Keep the features of the frozen backbone here, for every later run over the "
        "same data, whatever its method or order of arrival: what they need of them is not computed again. 'evertune "
        "cache' shows what is kept.", show_default="none", rich_help_panel=MACHINE,
    ),
]  # fmt: skip
CacheSize = Annotated[
    float | None,
    typer.Option(
        "--cache-size", metavar="GIB", help="The most that --cache may hold; what was unused for longest goes first.",
        show_default="10", rich_help_panel=MACHINE,
    ),
]  # fmt: skip
CheckpointEvery = Annotated[
    float | None,
    typer.Option(
        "--checkpoint-every", metavar="SECONDS", min=0, help="How often to note how far learning has come, so that it "
        "can go on there after a stop.",
        show_default="60, or as seldom as to cost less than a hundredth of the time", rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Give up a task that was not finished, and learn it from its beginning.",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no line per task.", rich_help_panel=OUTPUT)]


def method_options(
    method: str, preset: str | None, settings: Sequence[str] | None, batch: int | None
) -> dict[str, Any]:
    """The options behind ``--set`` and ``--batch``, as text, checked against the method before anything is loaded.

    Raises
    ------
    ConfigError
        Unknown method, preset or option, a value that does not fit, or a setting without ``=``.
    """
    from evertune.methods import get_method

    config = get_method(method).config_type
    known = {name for name, _, _ in config.explain()}
    options: dict[str, Any] = {}
    for setting in [*(settings or []), *([] if batch is None else [f"batch_size={batch}"])]:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set {setting} sets nothing: write it as KEY=VALUE, such as --set rate=0.01.")
        if key not in known and not key.startswith("tuning."):
            hint = nearest(key, known) if known else "It has none."
            raise ConfigError(f"{method} has no option {key!r}. {hint} 'evertune methods {method}' explains them.")
        if options.get(key, value.strip()) != value.strip():
            raise ConfigError(f"{key} is set twice, to {options[key]!r} and to {value.strip()!r}: leave one out.")
        options[key] = value.strip()
    config.make(preset, **options)
    return options


def feature_cache(folder: Path | None, size: float | None) -> DiskCache | None:
    """The cache behind ``--cache`` and ``--cache-size``.

    Raises
    ------
    ConfigError
        A size without a folder, or one that holds nothing.
    """
    if folder is None:
        if size is not None:
            raise ConfigError(
                "--cache-size bounds the folder of --cache, and none is given: name one, or leave it out."
            )
        return None
    from evertune.engine import DiskCache
    from evertune.engine.disk_cache import GIB

    return DiskCache(folder) if size is None else DiskCache(folder, int(size * GIB))


def new_learner(
    method: str,
    options: dict[str, Any],
    *,
    preset: str | None,
    backbone: str | None,
    weights: Path | None,
    input_size: int | None,
    preprocessing: str | None,
    seed: int | None,
    crop_scale: tuple[float, float] | None,
    flip: bool | None,
    test_resize: int | None,
    max_length: int | None,
    pooling: str | None,
    truncate: bool,
    protocol: ProtocolPreset | None = None,
    **runtime: Any,
) -> Learner:
    """A fresh learner from what was said on the command line; None stands for the protocol's or library's default."""
    from evertune import Learner, Seeds, load_backbone
    from evertune.backbones.load_text import is_text

    backbone = backbone or "embedded"
    named = "native" if protocol is None or is_text(backbone) else protocol.preprocessing
    model = load_backbone(
        backbone,
        weights=weights,
        input_size=input_size,
        preprocessing=preprocessing or named,
        max_length=max_length,
        pooling=pooling,
    )
    seed = seed or 0
    return Learner(
        method,
        model,
        preset=preset,
        seeds=Seeds(init=seed, augmentation=seed, sampling=seed),
        truncate=truncate,
        **_views(model, protocol, crop_scale, flip, test_resize),
        **runtime,
        **options,
    )


def _views(
    model: Backbone,
    protocol: ProtocolPreset | None,
    crop_scale: tuple[float, float] | None,
    flip: bool | None,
    test_resize: int | None,
) -> dict[str, Any]:
    """The views of images as asked for; those of texts go by themselves."""
    from evertune import TestView, TrainView
    from evertune.backbones import ImageIdentity

    if not isinstance(model.identity, ImageIdentity):
        asked = {"--crop-scale": crop_scale, "--flip": flip, "--test-resize": test_resize}
        meaningless = [option for option, value in asked.items() if value is not None]
        if meaningless:
            raise ConfigError(
                f"{', '.join(meaningless)} is for images, and {model.identity.name} reads texts: leave it out."
            )
        return {}
    size = model.identity.input_size
    train: dict[str, Any] = {"size": size} if protocol is None else protocol.learner_options(size)["train_view"]
    test: dict[str, Any] = {"size": size} if protocol is None else protocol.learner_options(size)["test_view"]
    if crop_scale is not None:
        train["scale"] = crop_scale
    if flip is not None:
        train["flip"] = 0.5 if flip else 0.0
    if test_resize is not None:
        test["resize"] = test_resize
    return {"train_view": TrainView(**train), "test_view": TestView(**test)}


def kept_learner(folder: Path, weights: Path | None, **runtime: Any) -> Learner:
    """The learner kept in ``folder``; ``weights`` where its backbone came from a local file."""
    from evertune import Learner, LearnerFolder
    from evertune.backbones import load_again

    if weights is None:
        return Learner.load(folder, **runtime)
    identity = LearnerFolder(folder).content()["backbone"]
    return Learner.load(folder, load_again(identity, weights=weights), **runtime)
