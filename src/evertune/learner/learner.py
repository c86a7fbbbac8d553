"""The learner: what users hold. It learns tasks as they arrive, predicts, and is kept in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evertune.backbones import Backbone, load_backbone
from evertune.engine import (
    DiskCache,
    Engine,
    PhaseReport,
    Runtime,
    Seeds,
)
from evertune.engine.views import views_of
from evertune.evaluation.calibration import BINS, Calibration
from evertune.learner import estimator
from evertune.learner.folder import LearnerFolder
from evertune.learner.forgetting import Forgotten, forget
from evertune.learner.keeping import described, restored, tensors_of
from evertune.learner.learning import learn
from evertune.learner.measuring import calibration, evaluate, fitted
from evertune.learner.predictions import Predictions, ask, classify, readable
from evertune.learner.temperature import Temperature
from evertune.learner.told import Told
from evertune.methods import Stored, make_method
from evertune.streams import Kind, Source, Task, View
from evertune.streams.unlabelled import Images


class Learner:
    """A frozen backbone, a method, and all that was learned with them.

    Parameters
    ----------
    method
        A name, like ``"safe"``; ``evertune methods`` lists them.
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
        self.settings = {k: v for k, v in locals().items() if k not in ("self", "options")} | options
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
        self.temperature: Temperature | None = None
        self.phases: list[dict[str, Any]] = []
        """What the phases of the last task took."""

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(
        self,
        task: Task,
        on_phase: Callable[[PhaseReport], None] | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        restart: bool = False,
        every: float | None = None,
        keep: int | None = None,
    ) -> list[PhaseReport]:
        """Learn one task: new classes, a new domain of known ones, or both. Old data is not needed.

        Returns what each phase took; ``on_phase`` is told of each as it ends. If anything goes wrong, the learner is
        what it was before.

        With a ``folder`` the learner is saved there when the task is learned, and until then how far it has come.
        Called again after a stop of any kind, with the same learner and task, it goes on there and ends with the same
        bits as if it had never stopped (in fp32, on the same machine). Meanwhile the folder is locked.

        Parameters
        ----------
        restart
            Give up what the folder holds of an unfinished update, and learn the task from its beginning.
        every
            Seconds between two checkpoints; by default as many as make them cost less than a hundredth of the time,
            and 60 at least.
        keep
            Versions that stay in the folder, as in :meth:`save`.

        Raises
        ------
        StreamError
            The task has nothing to learn from, or learning a first task of one class.
        DataError
            An image cannot be read, a text is longer than the backbone reads, or the examples are of another kind.
        TrainingError
            The loss became infinite or not a number.
        ConfigError
            ``restart``, ``every`` or ``keep`` without a folder.
        StorageError
            The folder is in use or cannot be written, holds an unfinished update that is damaged or another one's, or a
            learner that has learned what this one has not.
            If the last save fails, the learner in memory has learned the task.
        """
        return learn(self, task, on_phase, folder=folder, restart=restart, every=every, keep=keep)

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
        return ask(self, readable(self, images), task)[0]

    def classify(self, images: Images, *, task: Told = None, abstain: float | None = None) -> Predictions:
        """Labels, probabilities and inferred tasks in one pass; ``images`` and ``task`` as in :meth:`scores`.

        Where the largest probability is below ``abstain``, 0 to below 1, there is no label. Probabilities are the
        softmax of the scores over the temperature, which is 1 until :meth:`calibrate` finds a better one. Until then
        they order the classes and say little of how often an answer is right: scores of prototype, distance and ridge
        methods are no log-probabilities, and their softmax is nearly flat or nearly 1 as their scale happens to be.

        Raises
        ------
        ConfigError
            ``abstain`` is no such number.
        """
        return classify(self, images, task, abstain)

    @overload
    def predict(self, images: Images, task: Told = None, abstain: None = None) -> list[str]: ...
    @overload
    def predict(self, images: Images, task: Told = None, abstain: float = ...) -> list[str | None]: ...
    def predict(self, images: Images, task: Told = None, abstain: float | None = None) -> Sequence[str | None]:
        """The most likely class name of each image, None below ``abstain``; as in :meth:`classify`."""
        return self.classify(images, task=task, abstain=abstain).labels

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities [N, K] over ``self.classes``, as in :meth:`classify`."""
        return self.classify(images).probabilities

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
        return evaluate(self, test, task)

    def calibration(
        self, test: Source, *, temperature: float | None = None, bins: int = BINS, adaptive: bool = False
    ) -> Calibration:
        """Whether the answers on ``test`` are right as often as their confidence says, without task identity.

        Confidence is the largest softmax probability of the scores over ``temperature``, by default the learner's own.
        The scores of prototype, distance and ridge methods are no log-probabilities, and at temperature 1 this shows
        what taking them for such would do. ``bins`` and ``adaptive`` as in :meth:`Calibration.measure`.

        Raises
        ------
        StreamError
            The data holds classes this learner was never taught.
        """
        return calibration(self, test, temperature, bins, adaptive=adaptive)

    def calibrate(self, source: Source) -> float:
        """Choose the temperature under which the true classes of ``source`` are likeliest, and keep it.

        ``source`` must not have been learned from, or the confidence will be too large; labels are not changed by it.
        A task learned later leaves the temperature as it is: ``self.temperature.tasks`` says how many were known then.

        Raises
        ------
        StreamError
            The data holds classes this learner was never taught.
        DataError
            It holds no examples.
        """
        self.temperature, _, _ = fitted(self, source)
        return self.temperature.value

    # -- the manners of scikit-learn ---------------------------------------------------------------------------------

    _estimator_type = "classifier"  # what scikit-learn before 1.6 asks for

    def partial_fit(self, X: Images, y: ArrayLike, *, name: str | None = None, kind: Kind | None = None) -> Learner:
        """Learn one more task: images or texts as for :meth:`scores`, and the class of each, a name or a whole number.

        A class has a name from then on, ``3`` is ``"3"``. The ``kind`` is ``"class"`` where all classes are new, and
        ``"mixed"`` otherwise.

        Raises
        ------
        DataError
            Labels that are missing, neither names nor whole numbers, or more or fewer than the images.
        """
        self.learn(estimator.task_of(self, X, y, name, kind))
        return self

    def fit(self, X: Images, y: ArrayLike) -> Learner:
        """Forget all, and learn X and y as the first task; as :meth:`partial_fit`."""
        vars(self).update(vars(self.__sklearn_clone__().partial_fit(X, y)))
        return self

    def score(self, X: Images, y: ArrayLike) -> float:
        """Top-1 accuracy, 0 to 1. A class that was never learned counts as answered wrongly."""
        return estimator.score(self, X, y)

    @property
    def classes_(self) -> NDArray[np.str_]:
        """``self.classes`` as an array; AttributeError before the first task."""
        if not self.classes:
            raise AttributeError("This learner has learned nothing yet: call fit, partial_fit or learn first.")
        return np.array(self.classes)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments that this learner was made with."""
        return dict(self.settings)

    def set_params(self, **settings: Any) -> Learner:
        """Change arguments of a learner that has learned nothing yet; ConfigError otherwise."""
        if settings:
            vars(self).update(vars(type(self)(**estimator.changed(self, settings))))
        return self

    def __sklearn_clone__(self) -> Learner:
        """An untrained learner of the same settings, over the same backbone."""
        return type(self)(**(self.settings | {"backbone": self.backbone}))

    def __sklearn_is_fitted__(self) -> bool:
        return bool(self.classes)

    def __sklearn_tags__(self) -> Any:
        return estimator.tags()

    # -- what is kept of the data, and forgetting ---------------------------------------------------------------------

    def stored(self) -> list[Stored]:
        """Everything this learner keeps, in bytes, and what of the data it is; of the backbone it keeps nothing."""
        generators = self.method.generators
        random = sum(g.get_state().nbytes for g in (generators.init, generators.sampling))
        return [*self.method.stored(), Stored("random", random, "nothing: states of random generators")]

    def forget(self, *names: str, task: str | int | None = None, examples: Images | None = None) -> Forgotten:
        """Forget classes by name, or those of a ``task`` (its name or number): their statistics, rows and tunings.

        Whether scores of the other classes stay what they were is measured on a few made-up inputs, and on
        ``examples`` beside them. What cannot be removed is told, and depends on the method. A task that loses its last
        class is forgotten itself, and tasks behind it move down. What was saved of this learner is not touched:
        ``save(folder, keep=1)`` afterwards removes earlier versions, but not an update that was left unfinished there.
        If anything goes wrong, the learner is what it was.

        Raises
        ------
        StreamError
            No such class or task, nothing to forget, a task that has classes in common with another, or all classes.
        ConfigError
            The method cannot forget.
        """
        return forget(self, names, task, examples)

    # -- keeping -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, keep: int | None = None) -> None:
        """Keep this learner in ``folder`` as a new version, which becomes the current one.

        JSON and safetensors, nothing pickled; of the backbone its identity, no weights.
        Earlier versions stay (:class:`LearnerFolder` lists them and goes back to them), or the newest ``keep`` of all.
        Of several processes the first one writes.

        Raises
        ------
        StorageError
            The folder cannot be written (a full disk), or another process is changing it. What was there still is.
        """
        if self.engine.runtime.main:
            LearnerFolder(folder).write(described(self), tensors_of(self), keep=keep)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        backbone: str | Backbone | None = None,
        *,
        version: int | None = None,
        **settings: Any,
    ) -> Learner:
        """A learner from its folder; it predicts and goes on learning exactly as the saved one would have.

        Nothing in the folder is executed or changed, whoever made it.

        Parameters
        ----------
        backbone
            The backbone it was trained on, if that is not the embedded one or a tag of timm's. Another one is refused.
        version
            The number of a version, if not the current one.
        **settings
            ``device``, ``precision`` and ``truncate`` (as they were, unless given), ``workers``, ``progress`` and
            ``cache`` of :class:`Learner`.

        Raises
        ------
        StorageError
            A file is missing, damaged, of a later format, or describes no learner.
        ConfigError
            The backbone is another one than the learner was trained on.
        """
        content, tensors = LearnerFolder(folder).read(version)
        return restored(cls, content, tensors, backbone, settings, Path(folder))

    def resume(self, kept: Learner) -> None:
        """Become ``kept``, a learner of the same configuration that has come further."""
        self.method, self.classes, self.history = kept.method, kept.classes, kept.history
        self.temperature, self.phases = kept.temperature, kept.phases
        self.method.to(self.engine.runtime.device)

    def __repr__(self) -> str:
        return (
            f"<Learner {self.method.name} ({self.preset}) on {self.backbone.identity.name}: "
            f"{len(self.history)} tasks, {len(self.classes)} classes>"
        )
