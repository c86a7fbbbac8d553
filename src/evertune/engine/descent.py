"""A training phase under way: its steps, and all that they leave outside the method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evertune.engine.cache import FeatureCache
from evertune.engine.optimizer import make_optimizer
from evertune.engine.optimizer import read_state as read_optimizer
from evertune.engine.optimizer import write_state as write_optimizer
from evertune.engine.runtime import Runtime
from evertune.errors import TrainingError
from evertune.methods import Batch, Optimise


class Descent:
    """The optimiser of an :class:`Optimise` phase, the loss terms summed over its epoch, and its bank of views."""

    def __init__(self, phase: Optimise, runtime: Runtime) -> None:
        self.phase, self.recipe, self.runtime = phase, phase.recipe, runtime
        self.parameters = [p for p in phase.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, self.recipe, phase.slowed())
        self.averaged = phase.averaged()
        self.sums: dict[str, Tensor] = {}
        views = self.recipe.views
        self.bank = FeatureCache() if views is not None and views < self.recipe.epochs else None

    def enter(self, epoch: int) -> None:
        """The rates of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(epoch, group["factor"])

    def step(self, batch: Batch, whole: int) -> None:
        """One step on this process's part of a batch of ``whole`` examples."""
        terms = self.phase.loss(batch) if len(batch.labels) else {}
        self.optimizer.zero_grad(set_to_none=True)
        if terms:
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.runtime.average_gradients(self.parameters, len(batch.labels) / whole)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        for mean, tuning, weight in self.averaged:
            mean.follow(tuning, weight)
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=term.device)) + term.detach()

    def leave(self, steps: int) -> dict[str, float]:
        """The mean loss terms of an epoch of so many steps; the next one sums anew."""
        means = {name: float(value) / steps for name, value in self.sums.items()}
        self.sums = {}
        return means

    def require_finite(self, epoch: int, step: int) -> None:
        """TrainingError if the loss of any process is infinite or not a number."""
        bad = [name for name, value in self.sums.items() if not torch.isfinite(value)]
        if self.runtime.sum(torch.tensor(float(len(bad)), device=self.runtime.device)):
            raise TrainingError(
                f"The loss ({', '.join(bad) or 'in another process'}) became infinite or not a number in "
                f"'{self.phase.name}', epoch {epoch + 1}, by step {step + 1}. Lower the learning rate (rate=), or look "
                "at the data. What was learned before this task is unchanged."
            )

    def shared(self) -> dict[str, Tensor]:
        """What is the same in all processes: the optimiser's memory."""
        return {f"optimizer.{name}": value for name, value in read_optimizer(self.optimizer).items()}

    def own(self) -> dict[str, Tensor]:
        """What each process has of its own: random numbers, sums, and the bank's features of its rows."""
        random = {"random.cpu": torch.get_rng_state()}
        for device in range(torch.cuda.device_count()):
            random[f"random.cuda.{device}"] = torch.cuda.get_rng_state(device)
        sums = {f"sum.{name}": value for name, value in self.sums.items()}
        bank = {} if self.bank is None else {f"bank.{name}": value for name, value in self.bank.state().items()}
        return random | sums | bank

    def load(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], losses: list[str]) -> None:
        """Go on from :meth:`shared` and :meth:`own`, with the loss terms in the order of ``losses``."""
        write_optimizer(self.optimizer, part("optimizer.", shared))
        torch.set_rng_state(own["random.cpu"].clone())
        for device, state in part("random.cuda.", own).items():
            torch.cuda.set_rng_state(state.clone(), int(device))
        self.sums = {name: own[f"sum.{name}"].to(self.runtime.device, copy=True) for name in losses}
        if self.bank is not None:
            self.bank.load(part("bank.", own), self.runtime.device)


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
