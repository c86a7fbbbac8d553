"""NTK-CL, two subnetworks and their fusion seen through the neural tangent kernel (Liu et al., arXiv 2407.17120;
NTK-CL spec §4 to §8)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from evertune.backbones import Passes, Shape
from evertune.heads import CosineHead, HybridFusion, section_scores
from evertune.methods import losses
from evertune.methods.config import require
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.ntk_cl_config import NTKConfig
from evertune.methods.ntk_cl_parts import Session, Subnetwork
from evertune.methods.training import parameters_of
from evertune.statistics import ClassMeans, others
from evertune.tuning import Tuning, make_tuning


@register
class NTKCL(Method):
    """Channel-wise and token-wise features c and p and their fusion m learn each task with one head; prototypes answer.

    A feature is S sections side by side: the plain model's (if asked for), one per frozen set, the current one.
    """

    name = "ntk_cl"
    paper = (
        "Jingren Liu et al. *Parameter-Efficient Fine-Tuning for Continual Learning: A Neural Tangent Kernel "
        "Perspective.* [arXiv 2407.17120](https://arxiv.org/abs/2407.17120)"
    )
    config_type = NTKConfig
    config: NTKConfig
    of_data: ClassVar[dict[str, str]] = {"averaged": "nothing: bookkeeping"}
    averaged: Tensor

    def __init__(self, config: NTKConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        require(
            config.branch == "channel" or not shape.varies,
            "ntk_cl does not serve texts: its token-wise subnetwork mixes tokens by their place, and their number "
            "varies with the text. Its channel-wise subnetwork alone does: branch='channel'.",
        )
        init = generators.init
        self.subnetworks = nn.ModuleDict()
        if config.branch != "patch":
            self.subnetworks["channel"] = Subnetwork(config.fresh(shape, init), config.frozen)
        if config.branch != "channel":
            options: dict[str, Any] = {"length": config.prompts, "init": config.prompt_init}
            patch = make_tuning("token_mixing", shape, init, blocks=config.blocks, **options)
            self.subnetworks["patch"] = Subnetwork(patch, config.frozen)
        self.weights = [config.beta] * config.plain + [config.gamma] * config.frozen + [config.alpha]  # ω
        d = width * len(self.weights)
        self.fusion: HybridFusion | None = None
        if config.branch == "both":
            self.fusion = HybridFusion(d, init, dropout=config.fusion_dropout, attention=config.fusion == "attention")
        self.head = CosineHead(d, config.sigma_init)  # of one session, for its classes
        kept = self._features if config.hybrid_prototypes == "stored" else tuple(self.subnetworks)
        self.means = nn.ModuleDict({name: ClassMeans() for name in kept})
        self.register_buffer("averaged", torch.zeros(config.frozen, dtype=torch.long))  # sessions in each frozen set
        self.session = Session()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        c = self.config
        later = {"epochs": c.follow_epochs, "rate": c.follow_rate} if task.index else {}
        recipe = c.recipe(views=c.views, **later)
        return [
            Solve("begin", functools.partial(self._begin, task)),
            Optimise("session", functools.partial(self.loss, task), self.trained, recipe),
            Solve("average", functools.partial(self._average, task.index)),
            Collect("prototypes", self._collect),
        ]

    # -- features (§4) -------------------------------------------------------------------------------------------------

    @property
    def _features(self) -> tuple[str, ...]:
        """The one that answers in the paper comes first."""
        return ("hybrid", "channel", "patch") if self.config.branch == "both" else (self.config.branch,)

    def features(self, passes: Passes) -> dict[str, Tensor]:
        """c and p (4.1), and m (4.2), each [B, d]; or the only one there is."""
        sections = {name: [passes(t) for t in cast(Subnetwork, s).tunings] for name, s in self.subnetworks.items()}
        plain = [passes()] if self.config.plain else []  # asked last, it shares what the others began with
        found = {name: torch.cat([*plain, *own], 1) for name, own in sections.items()}
        return found if self.fusion is None else {"hybrid": self.fusion(found["channel"], found["patch"])} | found

    # -- a session (§5, §6) --------------------------------------------------------------------------------------------

    def trained(self) -> list[nn.Parameter]:
        return [*(parameter for _, parameter in self._kept()), *self.head.parameters()]

    def _kept(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained in every session: all ``cur`` and the fusion."""
        for subnetwork in self.subnetworks.values():
            yield from cast(Subnetwork, subnetwork).cur.named_parameters()
        if self.fusion is not None:
            yield from self.fusion.named_parameters()

    def _pulled(self) -> Tensor:
        """θ of L_reg as one vector."""
        everything = self.config.reg_scope == "all"
        return torch.cat([p.flatten() for name, p in self._kept() if everything or "bias" not in name])

    def _begin(self, task: TaskInfo) -> None:
        """A new head for the session's classes; θ_ref; the directions of the classes that it does not show."""
        c, device = self.config, self.averaged.device
        self.head.clear(c.sigma_init)
        self.head.draw(len(task.present), self.generators.init)
        self.session = Session().to(device)
        if self.fusion is not None:
            self.session.reference = self._pulled()
            self.session.old = others(task.known, task.present).to(device)
            main = losses.old_directions if c.orth == "energy" else losses.released_residual
            self.session.directions = main(self.prototypes("hybrid", self.session.old), c.rank)

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        """L = L_cls + w_dis L_dis + w_orth L_orth + w_reg L_reg (5.1); one subnetwork alone has no regularisers."""
        c, y = self.config, batch.labels
        features = self.features(batch.passes)
        terms = {name: losses.task_cross_entropy(self.head(z), y, task.present) for name, z in features.items()}
        if self.fusion is None:
            return terms
        channel, patch, m = features["channel"], features["patch"], features["hybrid"]
        if c.w_dis:
            old = self.session.old
            drawn = torch.randperm(len(old))[: c.batch_size].to(old.device)  # seeded by the engine, as dropout is
            distance = losses.dissimilarity if c.dis == "supcon" else losses.dissimilarity_released
            terms["dissimilarity"] = c.w_dis * distance(m, y, self.prototypes("hybrid", old[drawn]), tau=c.tau)
        if c.w_orth and c.orth == "energy" and self.session.directions.numel():
            terms["orthogonality"] = c.w_orth * losses.overlap(self.session.directions, channel, patch, m)
        if c.w_orth and c.orth == "released":
            terms["orthogonality"] = c.w_orth * losses.overlap_released(self.session.directions, channel, patch)
        if c.w_reg:
            terms["pull"] = c.w_reg * (self._pulled() - self.session.reference).square().sum()
        return terms

    def _average(self, t: int) -> None:
        """cur enters the mean of its frozen set (§7); what only the session needed goes."""
        c = self.config
        index = min(t // c.segment, c.frozen - 1) if c.segment else 0
        n = int(self.averaged[index])
        last = c.total_tasks is not None and t + 1 >= c.total_tasks
        if not last and (c.average == "mean" or (c.average == "first" and not n)):
            for subnetwork in self.subnetworks.values():
                cast(Subnetwork, subnetwork).average(index, n)
            self.averaged[index] += 1
        self.head.clear(c.sigma_init)
        self.session = Session()

    def train(self, mode: bool = True) -> NTKCL:
        super().train(mode)
        if self.config.frozen_dropout:
            for subnetwork in self.subnetworks.values():
                for module in cast(Subnetwork, subnetwork).pre.modules():
                    module.training = mode
        return self

    # -- prototypes and prediction (§8) --------------------------------------------------------------------------------

    def _collect(self, batch: Batch) -> None:
        """Φ_c is the mean of un-normalised features, all in one pass; rows of classes not shown stay as they were."""
        for name, z in self.features(batch.passes).items():
            if name in self.means:
                cast(ClassMeans, self.means[name]).update(z, batch.labels)

    def prototypes(self, name: str, classes: Tensor | None = None) -> Tensor:
        """Φ [K, d] of a feature, or the rows of some classes. Fused ones do not age with the fusion: it is affine, so m
        of means is a mean of m."""
        if name in self.means:
            means, like = cast(ClassMeans, self.means[name]), self.head.weight
            if classes is None:
                return means.means
            return means.means[classes].to(like) if len(classes) else like.new_zeros(0, like.shape[1])
        assert self.fusion is not None
        channel, patch = (self.prototypes(part, classes) for part in ("channel", "patch"))
        return self.fusion.of_means(channel, patch).detach()

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        """(8.1) with each feature's own prototypes."""
        x = self.features(passes)
        found = {name: section_scores(z, self.prototypes(name), self.weights) for name, z in x.items()}
        if self.fusion is None:
            return found
        found["together"] = torch.stack(list(found.values())).mean(0)
        return {self.config.answer: found.pop(self.config.answer)} | found

    def forget(self, classes: Sequence[int]) -> list[str]:
        for means in self.means.values():
            cast(ClassMeans, means).drop(classes)
        parts = ", ".join([*self.subnetworks, *([] if self.fusion is None else ["fusion"])])
        return [f"What is trained ({parts}) was trained on every task and stays as it is, its frozen copies too."]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        tunings = [tuning for s in self.subnetworks.values() for tuning in cast(Subnetwork, s).tunings]
        return (None, *tunings) if self.config.plain else tuple(tunings)

    @property
    def tangent_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained: the current subnetworks and the fusion, not the means."""
        names = ("fusion.", *(f"subnetworks.{name}.cur." for name in self.subnetworks))
        return {name: p for name, p in self.named_parameters() if name.startswith(names)}

    def describe(self) -> dict[str, Any]:
        tunings, fusion = (parameters_of(part) for part in (self.subnetworks, self.fusion or nn.Identity()))
        prototypes = [cast(ClassMeans, means).sums for means in self.means.values()]
        sizes: dict[str, Sequence[Tensor]] = {"tunings": tunings, "fusion": fusion, "prototypes": prototypes}
        return {"bytes": {name: sum(t.nbytes for t in tensors) for name, tensors in sizes.items()}}
