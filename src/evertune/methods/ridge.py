"""Options of ridge heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evertune.heads import RidgeOptions
from evertune.methods.config import Config, option, require
from evertune.methods.first_session import FirstSessionConfig

RIDGE: dict[str, Any] = {"features": 2000, "ridge_scale": "energy", "ridge_low": -6, "ridge_high": 1}
"""The ridge part of the ``evertune`` presets."""


@dataclass(frozen=True, kw_only=True)
class RidgeGrid(Config):
    """Options of the search for the ridge strength."""

    ridge_low: int = option(3, "smallest candidate of the ridge strength, as a power of ten")
    ridge_high: int = option(8, "largest candidate, as a power of ten")
    strength: float | None = option(None, "a fixed ridge strength instead of the search")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ridge_low <= self.ridge_high, f"ridge_low={self.ridge_low} is above ridge_high={self.ridge_high}.")
        require(self.strength is None or self.strength >= 0, f"strength={self.strength} must not be negative.")

    @property
    def grid(self) -> list[float]:
        """The candidates, before anything multiplies them."""
        return [10.0**p for p in range(self.ridge_low, self.ridge_high + 1)]


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(RidgeGrid, FirstSessionConfig):
    """Options of a method with ridge heads."""

    features: int = option(10_000, "M, number of random features; 0 for ridge on the features themselves")
    ridge_scale: Literal["features", "energy", "none"] = option(
        "features", "what multiplies the candidates: M/10⁴, the task's mean ‖h‖², or nothing as released (T20)"
    )
    ridge_split: Literal["stratified", "shuffled", "loo"] = option(
        "stratified", "how λ is judged: on 20 % of the task by class or not (T5, T6), or by leave-one-out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.features >= 0, f"features={self.features} must not be negative.")

    @property
    def ridge(self) -> RidgeOptions:
        factor = self.features / 1e4 if self.ridge_scale == "features" and self.features else 1.0
        return RidgeOptions(
            grid=tuple(strength * factor for strength in self.grid),
            strength=self.strength,
            fraction=0.0 if self.ridge_split == "loo" else 0.2,
            stratified=self.ridge_split == "stratified",
            relative=self.ridge_scale == "energy",
        )
