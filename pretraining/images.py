"""Formula-driven images: every picture the embedded backbone was trained on is drawn here from random numbers.

Four families of classes, each defined by a handful of random parameters (the *class*), which every drawing perturbs
and then renders under a random pose, colouring and degradation (the *instance*):

``strokes``    one to three Bézier strokes, like the characters of an alphabet nobody writes
``contours``   closed curves whose radius is a random Fourier series, nested, as outlines or filled
``fractals``   attractors of random iterated function systems
``textures``   sums of gratings and filtered noise in a class palette

The idea that a transformer can be pre-trained on such pictures is that of Kataoka et al., "Pre-training without Natural
Images" (ACCV 2020, fractals) and "Replacing Labeled Real-image Datasets with Auto-generated Contours" (CVPR 2022).
Everything is vectorised over the batch, so drawing costs a small part of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

FAMILIES = {"strokes": 440, "contours": 200, "fractals": 160, "textures": 160}
"""Classes per family in the first stage: all kinds of pictures."""

SCRIPTS = {"strokes": 900, "contours": 120, "fractals": 80, "textures": 100}
"""Classes per family in the second stage: mostly characters, written by many hands."""

CURVE_POINTS = 20
HARMONICS = 6
CHAINS, STEPS, DISCARD = 160, 28, 8


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * std


@dataclass
class FormulaImages:
    """Draws labelled batches, without end, from one seed.

    ``draw(n)`` gives images [n, 3, size, size] in [0, 1] and labels [n] in ``range(n_classes)``. Classes are fixed by
    ``class_seed``; instances follow from ``seed``.
    """

    size: int = 32
    class_seed: int = 0
    seed: int = 1
    families: Mapping[str, int] = field(default_factory=lambda: FAMILIES)
    hand: float = 0.07
    """How far a stroke's control points stray from those of its class (standard deviation; the image spans 2)."""
    pen: float = 0.16
    """Largest half width of a stroke."""
    coarse: tuple[float, float, float] = (0.15, 0.25, 0.4)
    """Share of images at 8 pixels; at 12 or fewer; at 16 or fewer."""

    def __post_init__(self) -> None:
        classes = torch.Generator().manual_seed(self.class_seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.offsets = dict(zip(self.families, _cumulative(list(self.families.values())), strict=True))
        self.n_classes = sum(self.families.values())
        self._strokes = _stroke_classes(self.families["strokes"], classes)
        self._contours = _contour_classes(self.families["contours"], classes)
        self._fractals = _fractal_classes(self.families["fractals"], classes)
        self._textures = _texture_classes(self.families["textures"], classes)
        axis = (torch.arange(self.size) + 0.5) / self.size * 2 - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.grid = torch.stack([x, y], -1).reshape(-1, 2)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(self.n_classes, (n,), generator=self.generator)
        labels = labels.sort().values  # one contiguous run per family; the order inside a batch does not matter
        images = []
        for family, offset in self.offsets.items():
            ids = labels[(labels >= offset) & (labels < offset + self.families[family])] - offset
            if len(ids):
                images.append(getattr(self, f"_draw_{family}")(ids))
        return self._degrade(torch.cat(images)), labels

    # -- the four families: shapes in [0, 1] of [n, size, size], or coloured textures of [n, 3, size, size] ----------

    def _draw_strokes(self, ids: Tensor) -> Tensor:
        control, present = self._strokes
        n, g = len(ids), self.generator
        points = control[ids] + _normal((n, *control.shape[1:]), self.hand, g)  # [n, strokes, 4, 2]
        t = torch.linspace(0, 1, CURVE_POINTS)
        bernstein = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # [4, P]
        curve = torch.einsum("kp,nskd->nspd", bernstein, points)
        curve = curve.masked_fill(~present[ids][:, :, None, None], 9.0).flatten(1, 2)
        curve = self._pose(curve, turn=0.25)
        distance = torch.cdist(self.grid.expand(n, -1, -1), curve).amin(-1)
        width = _uniform((n, 1), 0.05, self.pen, g)
        soft = _uniform((n, 1), 0.02, 0.06, g)
        return self._colour(torch.sigmoid((width - distance) / soft).view(n, self.size, self.size))

    def _draw_contours(self, ids: Tensor) -> Tensor:
        amplitude, phase, rings, filled = self._contours
        n, g = len(ids), self.generator
        grid = self._pose(self.grid.expand(n, -1, -1), turn=0.4) / 0.75
        radius, angle = grid.norm(dim=-1), torch.atan2(grid[..., 1], grid[..., 0])
        amp = amplitude[ids] * (1 + _normal((n, HARMONICS), 0.15, g))
        pha = phase[ids] + _normal((n, HARMONICS), 0.15, g)
        k = torch.arange(1, HARMONICS + 1)
        boundary = 1 + (amp[:, None] * torch.cos(k * angle[..., None] + pha[:, None])).sum(-1)
        level = radius / boundary.clamp_min(0.15)  # 1 on the outer contour
        count = rings[ids][:, None]
        saw = (level * count - (level * count).round()).abs() / count  # distance to the nearest of the nested contours
        line = torch.sigmoid((_uniform((n, 1), 0.03, 0.08, g) - saw) / 0.025) * torch.sigmoid((1.1 - level) / 0.03)
        solid = torch.sigmoid((1 - level) / 0.05)
        shape = torch.where(filled[ids][:, None], solid, line * torch.sigmoid((level - 0.12) / 0.03))
        return self._colour(shape.view(n, self.size, self.size))

    def _draw_fractals(self, ids: Tensor) -> Tensor:
        maps, weight = self._fractals
        n, g = len(ids), self.generator
        affine = maps[ids] + _normal((n, *maps.shape[1:]), 0.02, g)  # [n, maps, 2, 3]
        choice = torch.multinomial(weight[ids], CHAINS * STEPS, replacement=True, generator=g).view(n, CHAINS, STEPS)
        row = torch.arange(n)[:, None]
        point = torch.zeros(n, CHAINS, 2)
        cloud = []
        for step in range(STEPS):
            m = affine[row, choice[:, :, step]]  # [n, chains, 2, 3]
            point = (m[..., :2] @ point[..., None])[..., 0] + m[..., 2]
            if step >= DISCARD:
                cloud.append(point)
        cloud_t = torch.cat(cloud, 1)
        cloud_t = (cloud_t - cloud_t.mean(1, keepdim=True)) / cloud_t.std(1, keepdim=True).clamp_min(1e-3) * 0.4
        pixel = ((self._pose(cloud_t, turn=0.3) + 1) / 2 * self.size).floor().long()
        inside = ((pixel >= 0) & (pixel < self.size)).all(-1)
        flat = (pixel[..., 1] * self.size + pixel[..., 0]).clamp(0, self.size**2 - 1)
        count = torch.zeros(n, self.size**2).scatter_add_(1, flat, inside.float())
        shape = 1 - torch.exp(-count * _uniform((n, 1), 0.3, 1.0, g))
        return self._colour(shape.view(n, self.size, self.size))

    def _draw_textures(self, ids: Tensor) -> Tensor:
        frequency, weight, sharp, slope, palette = self._textures
        n, g = len(ids), self.generator
        grid = self._pose(self.grid.expand(n, -1, -1), turn=0.3)
        phase = _uniform((n, 1, frequency.shape[1]), 0, 2 * math.pi, g)
        waves = torch.sin(grid @ frequency[ids].transpose(1, 2) * math.pi + phase)  # [n, pixels, waves]
        pattern = (waves * weight[ids][:, None]).sum(-1)
        spectrum = torch.fft.rfft2(torch.randn((n, self.size, self.size), generator=g))
        fy = torch.fft.fftfreq(self.size)[:, None] * self.size
        fx = torch.fft.rfftfreq(self.size)[None] * self.size
        noise = torch.fft.irfft2(
            spectrum / (1 + (fx**2 + fy**2)).pow(slope[ids][:, None, None] / 2), s=(self.size,) * 2
        )
        noise = noise / noise.flatten(1).std(1)[:, None, None].clamp_min(1e-6)
        value = pattern.view(n, self.size, self.size) + noise * sharp[ids][:, 1, None, None]
        value = torch.sigmoid(value * sharp[ids][:, 0, None, None])[:, None]
        colours = (palette[ids] + _normal((n, 2, 3), 0.08, g)).clamp(0, 1)[..., None, None]
        image = colours[:, 0] * (1 - value) + colours[:, 1] * value
        grey = torch.rand((n, 1, 1, 1), generator=g) < 0.3
        return torch.where(grey, image.mean(1, keepdim=True).expand_as(image), image)

    # -- pose, colour, degradation -----------------------------------------------------------------------------------

    def _pose(self, points: Tensor, turn: float) -> Tensor:
        """Random rotation, anisotropic scale, shear and shift of [n, P, 2]."""
        n, g = len(points), self.generator
        angle = _normal((n,), turn, g)
        scale = _uniform((n, 2), 0.75, 1.2, g)
        shear = _normal((n,), 0.15, g)
        cos, sin = torch.cos(angle), torch.sin(angle)
        rotate = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        stretch = torch.zeros(n, 2, 2)
        stretch[:, 0, 0], stretch[:, 1, 1], stretch[:, 0, 1] = scale[:, 0], scale[:, 1], shear
        return points @ (rotate @ stretch).transpose(1, 2) + _normal((n, 1, 2), 0.08, g)

    def _colour(self, shape: Tensor) -> Tensor:
        """Foreground and background: half grey (both polarities), half coloured; some backgrounds are shaded."""
        n, g = len(shape), self.generator
        front, back = torch.rand((n, 3, 1, 1), generator=g), torch.rand((n, 3, 1, 1), generator=g)
        grey = torch.rand((n, 1, 1, 1), generator=g) < 0.5
        low, high = _uniform((n, 1, 1, 1), 0, 0.25, g), _uniform((n, 1, 1, 1), 0.7, 1, g)
        flip = torch.rand((n, 1, 1, 1), generator=g) < 0.4
        front = torch.where(grey, torch.where(flip, low, high), front).expand(n, 3, 1, 1)
        back = torch.where(grey, torch.where(flip, high, low), back).expand(n, 3, 1, 1)
        near = (front - back).abs().amax(1, keepdim=True) < 0.35
        front = torch.where(near, (back + 0.5) % 1.0, front)
        direction = _normal((n, 2), 1, g)
        ramp = (direction @ self.grid.T).view(n, 1, self.size, self.size)
        shade = ramp * _uniform((n, 1, 1, 1), 0, 0.2, g) * (torch.rand((n, 1, 1, 1), generator=g) < 0.4)
        value = shape[:, None]
        return (front * value + (back + shade) * (1 - value)).clamp(0, 1)

    def _degrade(self, images: Tensor) -> Tensor:
        """Lower resolutions (down to 8 pixels), contrast, brightness and noise."""
        n, g = len(images), self.generator
        images = images.clone()
        coarse = torch.rand((n,), generator=g)
        for limit, size in zip(self.coarse, (8, 12, 16), strict=True):
            rows = (coarse < limit).nonzero()[:, 0]
            coarse[rows] = 2.0
            if len(rows):
                small = F.adaptive_avg_pool2d(images[rows], size)
                images[rows] = F.interpolate(small, size=images.shape[-1], mode="bicubic", align_corners=False)
        contrast = _uniform((n, 1, 1, 1), 0.6, 1.1, g)
        bright = _normal((n, 1, 1, 1), 0.05, g)
        noise = torch.randn(images.shape, generator=g) * _uniform((n, 1, 1, 1), 0, 0.08, g)
        return ((images - 0.5) * contrast + 0.5 + bright + noise).clamp(0, 1)


def _cumulative(counts: list[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]


def _stroke_classes(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Control points [n, 3, 4, 2] and which strokes exist [n, 3]; a stroke often starts where another one passes."""
    control = _uniform((n, 3, 4, 2), -0.75, 0.75, g)
    joined = torch.rand((n, 2), generator=g) < 0.6
    anchor = torch.randint(4, (n, 2), generator=g)
    for s in (1, 2):
        start = control[torch.arange(n), s - 1, anchor[:, s - 1]]
        control[:, s, 0] = torch.where(joined[:, s - 1, None], start, control[:, s, 0])
    closed = torch.rand((n,), generator=g) < 0.25
    control[:, 0, 3] = torch.where(closed[:, None], control[:, 0, 0], control[:, 0, 3])
    count = torch.randint(1, 4, (n,), generator=g)
    return control, torch.arange(3)[None] < count[:, None]


def _contour_classes(n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    decay = 1 / torch.arange(1, HARMONICS + 1).float().sqrt()
    amplitude = _uniform((n, HARMONICS), 0, 0.35, g) * decay
    amplitude = amplitude * (torch.rand((n, HARMONICS), generator=g) < 0.6)
    phase = _uniform((n, HARMONICS), 0, 2 * math.pi, g)
    rings = torch.randint(1, 4, (n,), generator=g).float()
    return amplitude, phase, rings, torch.rand((n,), generator=g) < 0.4


def _fractal_classes(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Affine maps [n, 4, 2, 3], contracted so that the largest singular value is at most 0.8, and their weights."""
    linear = _uniform((n, 4, 2, 2), -1, 1, g)
    top = torch.linalg.matrix_norm(linear, ord=2)[..., None, None]
    linear = linear / top * _uniform((n, 4, 1, 1), 0.35, 0.8, g)
    maps = torch.cat([linear, _uniform((n, 4, 2, 1), -1, 1, g)], -1)
    count = torch.randint(2, 5, (n,), generator=g)
    present = torch.arange(4)[None] < count[:, None]
    weight = torch.linalg.det(linear).abs().clamp_min(0.05) * present
    return maps, weight


def _texture_classes(n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    waves = 3
    angle = _uniform((n, waves), 0, math.pi, g)
    rate = _uniform((n, waves), 1.0, 6.0, g)
    frequency = torch.stack([rate * torch.cos(angle), rate * torch.sin(angle)], -1)
    weight = _uniform((n, waves), 0.2, 1, g) * (torch.rand((n, waves), generator=g) < 0.7)
    sharp = torch.stack([_uniform((n,), 1, 8, g), _uniform((n,), 0, 1, g)], -1)
    slope = _uniform((n,), 0.5, 4, g)
    return frequency, weight, sharp, slope, torch.rand((n, 2, 3), generator=g)
