"""The learner: what users hold. It learns tasks as they arrive, predicts, and is kept in a folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

import evertune
from evertune.backbones import Backbone, Passes, load_again, load_backbone
from evertune.engine import (
    DiskCache,
    Engine,
    PhaseReport,
    Runtime,
    Seeds,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from evertune.engine.views import views_from, views_of
from evertune.errors import ConfigError, DataError, StorageError, StreamError
from evertune.evaluation.calibration import BINS, Calibration
from evertune.methods import TaskInfo, make_method
from evertune.streams import Source, Task, View
from evertune.streams.unlabelled import Images, unlabelled

FORMAT = 1

Told = str | int | Sequence[str | int] | None
"""A task identity given to a prediction: by name or number, for all images or for each."""


class Learner:
    """A frozen backbone, a method, and all that was learned with them.

    Parameters
    ----------
    method
        ``"safe"``, ``"hide_pet"``, ``"ntk_cl"``, ``"ranpac"``, ``"aper"``, ``"simple_cil"``, ``"finetune"``.
    backbone
        A name for :func:`evertune.load_backbone`, or a loaded backbone, which may be shared by several learners.
    preset
        Named settings of the method; the first one by default (``evertune methods`` shows them).
    seeds
        Class order, initialisation, augmentation and sampling; a number sets all but the class order.
    device, precision
        ``"auto"``, ``"cpu"``, ``"cuda"`` …; ``"fp32"`` or ``"bf16"``.
    train_view, test_view
        How images are cropped and resized; by default the field's: random crops of 5 to 100 % of the area with flips,
        and a plain bicubic resize. Texts have one view, without augmentation.
    truncate
        Cut texts that are longer than the backbone reads at their end; otherwise they are an error.
    workers
        Processes that decode images.
    pixels
        ``"exact"`` decodes an image whenever it is shown; ``"fast"`` decodes those of a task once, keeps them while it
        is learned (up to 2 GiB), and crops and resizes whole batches on an accelerator. The pixels are the same.
    cache
        A folder in which features of the plain backbone are kept for all learners and runs over the same data; see
        :class:`evertune.engine.DiskCache`. Not part of the learner.
    **options
        Options of the method; those of its tuning are ``**{"tuning.rank": 4}``.

    Raises
    ------
    ConfigError, BackboneError

    Examples
    --------
    >>> from evertune import Learner, Stream, open_data
    >>> train, test = open_data("digits")
    >>> tasks = Stream.class_incremental(train, test, first=5, increment=5, train_per_class=5)
    >>> learner = Learner("simple_cil", "embedded", progress=False)
    >>> for task in tasks:
    ...     report = learner.learn(task)
    >>> len(learner.classes), len(learner.predict(test.select([0, 1, 2])))
    (10, 3)
    """

    def __init__(
        self,
        method: str = "safe",
        backbone: str | Backbone = "embedded",
        *,
        preset: str | None = None,
        seeds: Seeds | int = 0,
        device: str = "auto",
        precision: str = "fp32",
        train_view: View | None = None,
        test_view: View | None = None,
        truncate: bool = False,
        workers: int = 0,
        eval_batch: int = 128,
        progress: bool = True,
        cache: str | os.PathLike[str] | DiskCache | None = None,
        pixels: str = "exact",
        **options: Any,
    ) -> None:
        self.seeds = seeds if isinstance(seeds, Seeds) else Seeds(init=seeds, augmentation=seeds, sampling=seeds)
        self.backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
        self.train_view, self.test_view = views_of(self.backbone, train_view, test_view, truncate=truncate)
        runtime = Runtime(device, precision)
        self.method = make_method(method, self.backbone, preset=preset, seed=self.seeds.init, **options)
        self.method.generators.sampling.manual_seed(self.seeds.sampling)
        self.method.to(runtime.device)
        self.method.eval()
        self.engine = Engine(
            self.backbone,
            runtime,
            train_view=self.train_view,
            test_view=self.test_view,
            seeds=self.seeds,
            eval_batch=eval_batch,
            workers=workers,
            progress=progress,
            disk=cache if cache is None or isinstance(cache, DiskCache) else DiskCache(cache),
            pixels=pixels,
        )
        self.preset = preset or next(iter(self.method.config_type.presets))
        self.classes: tuple[str, ...] = ()
        self.history: list[dict[str, Any]] = []

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(self, task: Task, on_phase: Callable[[PhaseReport], None] | None = None) -> list[PhaseReport]:
        """Learn one task: new classes, a new domain of known ones, or both. Old data is not needed.

        Returns what each phase took. If anything goes wrong, the learner is what it was before.

        Raises
        ------
        StreamError
            The task has nothing to learn from, or learning a first task of one class.
        DataError
            An image cannot be read, a text is longer than the backbone reads, or the examples are of another kind.
        TrainingError
            The loss became infinite or not a number.
        """
        names = task.classes
        new = tuple(name for name in names if name not in self.classes)
        if task.kind == "class" and not new:
            raise StreamError(
                f"Task {task.name!r} brings no new class: {', '.join(names[:5])} are known. If its images are of a new "
                "domain, give it kind='domain'; if they are more of the same, kind='mixed'."
            )
        classes = (*self.classes, *new)
        if len(classes) < 2:
            raise StreamError(f"The first task has one class, {classes[0]!r}: there is nothing to tell apart yet.")
        position = {name: i for i, name in enumerate(classes)}
        indices = np.array([position.get(name, -1) for name in task.train.classes], dtype=np.int64)
        info = TaskInfo(
            index=len(self.history),
            present=tuple(sorted(position[name] for name in names)),
            new=tuple(position[name] for name in new),
            known=len(self.classes),
            size=len(task.train),
        )
        before = self._remember()
        reports = []
        try:
            for report in self.engine.learn(self.method, info, task.train, indices):
                reports.append(report)
                if on_phase is not None:
                    on_phase(report)
        except BaseException:
            self._recall(before)
            raise
        self.classes = classes
        self.history.append(
            {
                "task": task.name,
                "kind": task.kind,
                "new_classes": list(new),
                "classes": sorted(names, key=position.__getitem__),
                "examples": len(task.train),
                "seconds": round(sum(r.seconds for r in reports), 3),
                "evertune": evertune.__version__,
                "pillow": PIL.__version__,  # whose resizing decides about single bits of an image
                **self.method.describe(),
            }
        )
        return reports

    def _remember(self) -> dict[str, Any]:
        generators = self.method.generators
        return {
            "state": {k: v.clone() for k, v in self.method.state_dict().items()},
            "grad": {k: p.requires_grad for k, p in self.method.named_parameters()},
            "random": [generators.init.get_state(), generators.sampling.get_state()],
        }

    def _recall(self, before: dict[str, Any]) -> None:
        self.method.load_state_dict(before["state"])
        for name, parameter in self.method.named_parameters():
            parameter.requires_grad_(before["grad"][name])
        for generator, state in zip(
            (self.method.generators.init, self.method.generators.sampling), before["random"], strict=True
        ):
            generator.set_state(state)
        self.method.eval()

    # -- prediction --------------------------------------------------------------------------------------------------

    def scores(self, images: Images, task: Told = None) -> Tensor:
        """Scores [N, K] over ``self.classes``, on the CPU.

        ``images``: paths, PIL images, an array ([N, H, W], [N, H, W, 3] …, uint8 or float), or a source; where the
        backbone reads texts, texts or a source of them. The scores of one do not depend on the others. If the ``task``
        they belong to is known (task-incremental learning), its name or number, or one for each: classes of other tasks
        get −∞.
        """
        source = self._readable(images)
        if task is None:
            return next(iter(self.engine.scores(self.method, source).values()))
        numbers = self._task_numbers(task, len(source))
        told = self.engine.compute(
            source, self.method.branches, lambda passes: {"told": self.method.told(passes, numbers[passes.rows])}
        )["told"]
        return told.masked_fill(~self._classes_of_tasks()[numbers], -torch.inf)

    def predict(self, images: Images, task: Told = None) -> list[str]:
        """The most likely class name of each image; ``task`` as in :meth:`scores`."""
        return [self.classes[i] for i in self.scores(images, task).argmax(1).tolist()]

    def _readable(self, images: Images) -> Source:
        if not self.classes:
            raise StreamError("This learner has learned nothing yet: call learn(task) first.")
        source = unlabelled(images, self.backbone.modality)
        if not len(source):
            raise DataError(f"{source.name}: there are no {self.backbone.modality}s.")
        return source

    def _task_numbers(self, task: str | int | Sequence[str | int], images: int) -> Tensor:
        """The number of the task of each image, [N]."""
        given = [task] * images if isinstance(task, str | int) else list(task)
        if len(given) != images:
            raise StreamError(f"There are {images} images and {len(given)} task identities: give one, or one for each.")
        names = {entry["task"]: number for number, entry in enumerate(self.history)}
        numbers: dict[str | int, int] = {}  # an int is a number, whatever tasks are called
        for number in range(len(self.history)):
            numbers |= {number: number, str(number): number}
        numbers |= names
        for one in given:
            if isinstance(one, bool) or one not in numbers:
                raise StreamError(
                    f"No task is called {one!r}: {len(self.history)} were learned, {', '.join(list(names)[:10])}; give "
                    f"one of these names or a number from 0 to {len(self.history) - 1}."
                )
        return torch.tensor([numbers[one] for one in given])

    def _classes_of_tasks(self) -> Tensor:
        """Which classes occurred in which task, [T, K]."""
        position = {name: i for i, name in enumerate(self.classes)}
        belongs = torch.zeros(len(self.history), len(self.classes), dtype=torch.bool)
        for number, entry in enumerate(self.history):
            belongs[number, [position[name] for name in entry.get("classes", entry["new_classes"])]] = True
        return belongs

    def evaluate(self, test: Source, task: int | None = None) -> dict[str, tuple[int, int]]:
        """(correct, total) by part (the first is the method's answer) over all of ``test``, without task identity.

        If the number of the ``task`` the examples belong to is given, ``within task`` is measured beside: the class was
        found among the task's classes, when the task is told (task-incremental learning). If the method infers the
        task, so are ``router`` (the task was found) and ``oracle`` (the class was found when the task is told, among
        all classes). These never enter the answer, and only a method that infers the task passes images again for them.

        Raises
        ------
        StreamError
            The data holds classes this learner was never taught.
        """
        source, truth = self._labelled(test)
        if task is not None:
            self._task_numbers(task, 1)

        def read(passes: Passes) -> dict[str, Tensor]:
            parts = self.method.scores(passes)
            if task is None:
                return parts
            tasks = self.method.identify(passes)
            if tasks is None:
                told = next(iter(parts.values()))
            else:
                told = self.method.told(passes, torch.full_like(tasks, task))
                parts |= {"oracle": told, "router": tasks}
            elsewhere = ~self._classes_of_tasks()[task].to(told.device)
            return parts | {"within task": told.masked_fill(elsewhere, -torch.inf)}

        parts = self.engine.compute(source, self.method.branches, read, remember=True)
        inferred = parts.pop("router", None)
        correct = {name: int((scores.argmax(1) == truth).sum()) for name, scores in parts.items()}
        if inferred is not None:
            correct["router"] = int(torch.eq(inferred, task or 0).sum())
        return {name: (count, len(truth)) for name, count in correct.items()}

    def calibration(
        self, test: Source, *, temperature: float = 1.0, bins: int = BINS, adaptive: bool = False
    ) -> Calibration:
        """Whether the answers on ``test`` are right as often as their confidence says, without task identity.

        Confidence is the largest softmax probability of the scores over ``temperature``. The scores of prototype,
        distance and ridge methods are no log-probabilities, and this shows what taking them for such would do.
        ``bins`` and ``adaptive`` as in :meth:`Calibration.measure`.

        Raises
        ------
        StreamError
            The data holds classes this learner was never taught.
        """
        source, truth = self._labelled(test)
        scores = next(iter(self.engine.scores(self.method, source, remember=True).values()))
        return Calibration.of_scores(
            scores.double().numpy(), truth.numpy(), temperature=temperature, bins=bins, adaptive=adaptive
        )

    def _labelled(self, test: Source) -> tuple[Source, Tensor]:
        """``test`` and the place among ``self.classes`` of each of its labels, [N]."""
        unknown = [name for name in test.present() if name not in self.classes]
        if unknown:
            raise StreamError(
                f"{test.name} holds classes that were never learned: {', '.join(unknown[:10])}. "
                "Learn them or leave them out."
            )
        source = self._readable(test)
        position = {name: i for i, name in enumerate(self.classes)}
        return source, torch.tensor([position.get(name, -1) for name in test.classes])[torch.as_tensor(test.labels)]

    # -- keeping -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Keep this learner in ``folder``: ``learner.json`` and one safetensors file, no backbone weights, no pickle.

        The JSON is replaced last and names the file it belongs to, so a crash leaves the former learner in place.

        Raises
        ------
        StorageError
            The folder cannot be written (a full disk).
        """
        folder = Path(folder)
        file = f"state-{len(self.history)}.safetensors"
        generators = self.method.generators
        tensors = dict(self.method.state_dict())
        tensors["random.init"] = generators.init.get_state()
        tensors["random.sampling"] = generators.sampling.get_state()
        if not self.engine.runtime.main:
            return
        sha256 = write_tensors(folder / file, tensors)
        write_json(
            folder / "learner.json",
            {
                "format": FORMAT,
                "evertune": evertune.__version__,
                "method": self.method.name,
                "preset": self.preset,
                "options": self.method.config.as_dict(),
                "backbone": self.backbone.identity.as_dict(),
                "classes": list(self.classes),
                "seeds": self.seeds.as_dict(),
                "views": {"train": self.train_view.describe(), "test": self.test_view.describe()},
                "history": self.history,
                "precision": self.engine.runtime.precision,
                "state": {"file": file, "sha256": sha256},
            },
        )
        for old in folder.glob("state-*.safetensors"):  # the one before stays, so that a bad update can be undone
            if int(old.stem.removeprefix("state-")) not in (len(self.history), len(self.history) - 1):
                old.unlink()

    @classmethod
    def load(cls, folder: str | os.PathLike[str], backbone: str | Backbone | None = None, **settings: Any) -> Learner:
        """A learner from its folder; it predicts and goes on learning exactly as the saved one would have.

        Parameters
        ----------
        backbone
            The backbone it was trained on, if that is not the embedded one or a tag of timm's. Another one is refused.
        **settings
            ``device``, ``precision`` and ``truncate`` (as they were, unless given), ``workers``, ``progress`` and
            ``cache`` of :class:`Learner`.

        Raises
        ------
        StorageError
            A file is missing, damaged or of another format.
        ConfigError
            The backbone is another one than the learner was trained on.
        """
        folder = Path(folder)
        content = read_json(folder / "learner.json")
        if content.get("format") != FORMAT:
            raise StorageError(
                f"{folder} was written in format {content.get('format')}; this evertune reads format {FORMAT}."
            )
        absent = [k for k in ("backbone", "classes", "history", "method", "state", "views") if k not in content]
        if absent:
            raise StorageError(
                f"{folder / 'learner.json'} is damaged ({', '.join(absent)} missing): restore it from a copy."
            )
        settings = {"precision": content.get("precision", "fp32")} | settings
        identity = content["backbone"]
        if not isinstance(backbone, Backbone):
            backbone = load_again(identity, backbone)
        mine = backbone.identity.as_dict()
        differing = [k for k, v in identity.items() if _plain(mine.get(k)) != v and k != "name"]
        if differing:
            shown = "; ".join(f"{k}: {identity[k]} there, {mine.get(k)} here" for k in differing)
            raise ConfigError(f"The learner in {folder} was trained on another backbone ({shown}). Load that one.")
        train_view, test_view = views_from(content["views"], backbone, truncate=settings.pop("truncate", None))
        options = dict(content["options"])
        tuning = options.pop("tuning_options", {})
        learner = cls(
            content["method"],
            backbone,
            preset=content["preset"],
            seeds=Seeds(**content["seeds"]),
            train_view=train_view,
            test_view=test_view,
            **settings,
            **options,
            **{f"tuning.{k}": v for k, v in tuning.items()},
        )
        tensors = read_tensors(folder / content["state"]["file"], content["state"]["sha256"])
        generators = learner.method.generators
        generators.init.set_state(tensors.pop("random.init"))
        generators.sampling.set_state(tensors.pop("random.sampling"))
        learner.method.load_state_dict(tensors)
        learner.method.restored()
        learner.classes = tuple(content["classes"])
        learner.history = copy.deepcopy(content["history"])
        return learner

    def resume(self, kept: Learner) -> None:
        """Become ``kept``, a learner of the same configuration that has come further."""
        self.method, self.classes, self.history = kept.method, kept.classes, kept.history
        self.method.to(self.engine.runtime.device)

    def __repr__(self) -> str:
        return (
            f"<Learner {self.method.name} ({self.preset}) on {self.backbone.identity.name}: "
            f"{len(self.history)} tasks, {len(self.classes)} classes>"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
