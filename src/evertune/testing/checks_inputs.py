"""What kinds of input are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from evertune.errors import DataError
from evertune.learner import Learner
from evertune.testing.subject import Subject
from evertune.testing.suite import check, raises, require, require_near


@check
def every_kind_of_input_is_read(subject: Subject) -> None:
    """Grey, transparent, palette and 16 bit images of any size, files and arrays; any text that is not too long."""
    learner = subject.taught
    (_texts if subject.material.name == "texts" else _images)(subject, learner)


def _images(subject: Subject, learner: Learner) -> None:
    folder = subject.place()
    colour = subject.material.examples(1, 1)[0]
    grey = colour[:, :, 0]
    picture = Image.fromarray(colour)
    picture.save(folder / "picture.png")
    opaque = np.concatenate([colour, np.full_like(grey, 255)[:, :, None]], 2)
    _require_alike(
        learner,
        {
            "an array": colour[None],
            "an array of floats": colour[None].astype(np.float32) / 255,
            "an array with channels first": colour[None].transpose(0, 3, 1, 2),
            "an array of 16 bit": colour[None].astype(np.uint16) * 257,
            "an array with opacity": opaque[None],
            "an image": [picture],
            "an image with opacity": [Image.fromarray(opaque)],
            "a file": [str(folder / "picture.png")],
            "a path": [folder / "picture.png"],
        },
    )
    _require_alike(
        learner,
        {
            "a grey array": grey[None],
            "a grey image": [Image.fromarray(grey)],
            "a grey image in colours": [Image.fromarray(grey).convert("RGB")],
            "a grey image with opacity": [Image.fromarray(grey).convert("LA")],
            "a palette of greys": [Image.fromarray(grey).convert("P")],
            "a grey image of 16 bit": [Image.fromarray(grey.astype(np.uint16) * 257)],
        },
    )
    odd: dict[str, Sequence[Image.Image]] = {
        "an image of one pixel": [Image.new("RGB", (1, 1), "red")],
        "a very wide image": [Image.new("RGB", (600, 1), "blue")],
        "a very high image": [Image.new("L", (1, 600), 255)],
        "a transparent image": [Image.new("RGBA", (9, 7), (0, 0, 0, 0))],
        "an image of one bit": [Image.new("1", (5, 5))],
        "a printer's image": [Image.new("CMYK", (5, 5))],
    }
    _require_read(learner, odd)
    learner.predict([image for images in odd.values() for image in images])  # of all sizes and kinds in one batch
    with raises(DataError, "", "a list without images was given"):
        learner.predict([])


def _texts(subject: Subject, learner: Learner) -> None:
    text = str(subject.examples(1)[0])
    _require_alike(learner, {"a list": [text], "an array": np.array([text]), "a tuple": (text,)})
    odd = {
        "one letter": ["a"],
        "signs of other scripts": ["Grüße, 東京 ПРИВЕТ مرحبا 👍🏽"],
        "many lines": ["w10\nw11\t w12\r\n"],
        "signs alone": ["?!… — 12,345.67"],
    }
    _require_read(learner, odd)
    learner.predict([text for texts in odd.values() for text in texts])
    long = "w10 " * 200
    refused = {
        "no text": ([], ""),
        "a blank text": (["w10", " "], "empty"),
        "a text that is too long": ([long], "long"),
    }
    for kind, (given, word) in refused.items():
        with raises(DataError, word, f"{kind} was given"):
            learner.predict(given)
    cut = subject.after(3, truncate=True).scores([long])
    require(cut.isfinite().all(), "the scores of a text that was cut are not finite.")


def _require_alike(learner: Learner, given: Mapping[str, Any]) -> None:
    """The same picture or text in all these forms has the same scores."""
    found = {name: learner.scores(images) for name, images in given.items()}
    first = next(iter(found))
    for name, scores in found.items():
        require_near(scores, found[first], f"given as {name} instead of {first},")


def _require_read(learner: Learner, given: Mapping[str, Any]) -> None:
    for name, images in given.items():
        try:
            finite = learner.scores(images).isfinite().all()
        except Exception as error:
            raise AssertionError(f"{name} ends in {type(error).__name__}: {error}") from error
        require(finite, f"the scores of {name} are not finite.")
