"""HiDe-PET, hierarchical decomposition of parameter-efficient tuning (Wang et al., IEEE TPAMI 2025, arXiv 2407.05229;
HiDe-PET spec §5 to §10); its shared parameters are in hide_pet_shared.py."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evertune.backbones import Passes, Shape
from evertune.heads import LinearHead, align, by_group
from evertune.methods.hide_pet_config import HiDeConfig
from evertune.methods.hide_pet_shared import SharedSets
from evertune.methods.losses import centre_constants, contrastive, masked_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Optimise, Phase, Solve, TaskInfo, register
from evertune.statistics import ClassGaussians, TaskFeatures
from evertune.tuning import Tuning


@register
class HiDePET(SharedSets):
    """Which class given the task (WTP), which task (TII), which class of all (TAP): each is optimised for itself.

    û = f(x; g) is the uninstructed representation, h = f(x; e_i) the instructed one. ω reads the task from û, and ψ the
    class from h. Of both, statistics of every class are kept, one entry per class and task, and ω and ψ are aligned on
    draws from them.
    """

    name = "hide_pet"
    paper = (
        "Liyuan Wang, Jingyi Xie, Xingxing Zhang, Hang Su, Jun Zhu. *HiDe-PET: Continual Learning via Hierarchical "
        "Decomposition of Parameter-Efficient Tuning.* IEEE TPAMI 2025. [arXiv "
        "2407.05229](https://arxiv.org/abs/2407.05229)"
    )
    config_type = HiDeConfig
    dynamic = "it finds out which task each input is of, and passes it again under the tuning of that task"
    config: HiDeConfig

    def __init__(self, config: HiDeConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)

        def statistics() -> ClassGaussians:
            return ClassGaussians(config.statistics, centroids=config.centroids, rank=config.statistics_rank)

        self.psi, self.task_head = LinearHead(width), type(self.omega)(width)
        self.uninstructed, self.instructed = statistics(), statistics()
        self.task_h = TaskFeatures()

    def phases(self, task: TaskInfo) -> Iterator[Phase]:
        c, t = self.config, task.index
        yield from self.shared_phases(task)
        yield Solve("begin", functools.partial(self._begin, task))
        constants = centre_constants(self.instructed.centres, c.temperature)
        yield Optimise(
            "task-specific parameters",
            functools.partial(self.own_loss, task, constants),
            lambda: [*self.e[t].parameters(), *self.psi.parameters()],
            c.own_recipe(),
            lambda: [(self.e[t].parameters(), 1.0 if t else c.first_factor), (self.psi.parameters(), c.head_factor)],
        )
        finish, collect = Solve("finish", lambda: self._finish(t)), Collect("representations", self._collect)
        yield from (collect, finish) if c.statistics_first else (finish, collect)
        yield Solve("alignment", functools.partial(self._align, task))

    # -- e_t and ψ: within-task prediction (§7) ------------------------------------------------------------------------

    def _begin(self, task: TaskInfo) -> None:
        self.e.open({"previous": None, "shared": self._current, "fresh": self.e.template}[self.config.start])
        self.psi.grow(len(task.new), self.generators.init)

    def own_loss(self, task: TaskInfo, constants: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """L_WTP = L_CE + λ L_CR; columns outside the task's classes are left out, so their rows get no gradient."""
        c, h = self.config, batch.passes(self.e[task.index])
        terms = {"classification": masked_cross_entropy(self.psi(h), batch.labels, task.present)}
        if c.contrastive:
            terms["contrastive"] = c.contrastive * contrastive(h, self.instructed.centres, constants, tau=c.temperature)
        return terms

    def _finish(self, t: int) -> None:
        self.e.ensemble(t, self.config.ensemble, self.config.ensemble_space)
        self.e.freeze(t)

    # -- statistics (§8), task identity (§9) and task-adaptive prediction (§10) ---------------------------------------

    def _collect(self, batch: Batch) -> None:
        """û and h of the same images."""
        self.task_u.add(batch.passes(self._router), batch.labels)
        self.task_h.add(batch.passes(self.e.last), batch.labels)

    def _align(self, task: TaskInfo) -> None:
        """ω and ψ learn all classes together from draws of the statistics; with a single task there is nothing to."""
        c, known = self.config, self.uninstructed.entries
        for statistics, features in ((self.uninstructed, self.task_u), (self.instructed, self.task_h)):
            statistics.learn(features, task.index, self.generators.sampling)
        u, entries = self.uninstructed, torch.arange(self.uninstructed.entries)
        if c.identity == "task_head":
            self.task_head.grow(1, self.generators.init)
            self._rehearse(self.task_head, u, u.entry_task, c.tii_epochs, known)
        if c.accumulate and not known:  # ω saw no image
            self._rehearse(self.omega, u, entries, c.tii_epochs, len(entries))
        if known:
            self._rehearse(self.omega, u, entries, c.tii_epochs, known)
            self._rehearse(self.psi, self.instructed, self.instructed.entry_class, c.tap_epochs, known)

    def _rehearse(self, head: nn.Module, statistics: ClassGaussians, targets: Tensor, epochs: int, steps: int) -> None:
        def draw(n: int) -> tuple[Tensor, Tensor]:
            x, entry = statistics.sample(n, self.generators.sampling)
            return x, targets.to(x.device)[entry]

        c = self.config
        energy = float(statistics.centres.square().sum(1).mean()) if c.align_scale == "energy" else 1.0
        rate = c.align_rate / max(energy, 1e-12)
        align(head, draw, epochs=epochs, steps=steps, batch=c.align_samples * c.batch_size, rate=rate)

    # -- inference (§10.2) ---------------------------------------------------------------------------------------------

    def _entry_logits(self, passes: Passes) -> Tensor:
        """ω(û), [B, E]: one column for each class of each task; under EMA the larger of both copies'."""
        logits: Tensor = self.omega(passes(self._router))
        return torch.maximum(logits, self.omega(passes(self.average[0]))) if len(self.average) else logits

    def identify(self, passes: Passes) -> Tensor:
        c = self.config
        if c.identity == "task_head":
            logits: Tensor = self.task_head(passes(self._router))
        else:
            owner, together = self.uninstructed.entry_task, c.identity == "class_logsumexp"
            logits = by_group(self._entry_logits(passes), owner, len(self.e), together)
        return logits.argmax(1)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        shared = by_group(self._entry_logits(passes), self.uninstructed.entry_class, self.psi.classes)
        return {"routed": self.told(passes, self.identify(passes)), "uninstructed": shared}

    def told(self, passes: Passes, tasks: Tensor) -> Tensor:
        logits: Tensor = self.psi(passes.routed(self.e, tasks))
        return logits

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def forget(self, classes: Sequence[int]) -> list[str]:
        """Statistics and rows by class; e_t, and a shared set that served no other task, where no class is left."""
        entries = [j for j, c in enumerate(self.uninstructed.entry_class.tolist()) if c in classes]
        touched = {int(self.uninstructed.entry_task[j]) for j in entries}
        tasks = self.uninstructed.forget(classes)
        self.instructed.forget(classes)
        self.omega.drop(entries)
        self.psi.drop(classes)
        if self.config.identity == "task_head":
            self.task_head.drop(tasks)
        self.forget_tasks(tasks)
        return self._stays(bool(touched - set(tasks)))

    def _stays(self, shared_task: bool) -> list[str]:
        """What :meth:`forget` leaves; ``shared_task``: some of the classes had a task in common with others."""
        c, said = self.config, []
        if len(self.g):
            when = "the first task" if c.shared == "fsa" and not c.accumulate else "the tasks that it served"
            said.append(f"The shared tuning g ({c.tuning}) was trained on {when} and stays as it is.")
        if shared_task:
            said.append(
                "A task that keeps other classes keeps its tuning e_t, which was trained on all of its classes"
                + (", and the centroids of its plain features." if c.accumulate else ".")
            )
        if c.start == "previous" or c.ensemble:
            said.append("Tunings of later tasks began as those of earlier tasks or were averaged with them, and stay.")
        block = ", and the block beneath ω's," if c.router_head == "mlp" else ""
        said.append(
            f"The rows of other classes in ω and ψ{block} were trained beside these and stay as they are. Inputs that "
            "were routed to a task for the sake of a forgotten class are routed anew, and only their scores change."
        )
        return said

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self._router, *(bank[i] for bank in (self.average, self.e) for i in range(len(bank))))

    def describe(self) -> dict[str, Any]:
        tunings = sum(len(bank) * bank.nbytes for bank in (self.g, self.e, self.average))
        kept = {"tunings": tunings, "statistics": self.uninstructed.nbytes + self.instructed.nbytes}
        found: dict[str, Any] = {"bytes": kept}
        if self.config.accumulate:
            chosen = int(self.distribution.domain[-1])
            found |= {"shared set": chosen, "opened": bool(self.fresh), "distance": float(self.distance)}
        return found
