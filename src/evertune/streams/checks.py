"""A look at the files of a listing before anything is learned from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evertune.errors import DataError
from evertune.streams.decode import decode, find_problem
from evertune.streams.listing import Listing, Skipped
from evertune.streams.reading import Reading


def check_files(listing: Listing, reading: Reading) -> Listing:
    """Leave out, or refuse, what is not an image.

    Headers and checksums are looked at, which costs little, unless the reading says that files need no look. Whoever
    asks to go on without bad files also has every file decoded once, since a picture cut in its middle would otherwise
    stop a run in a later task.
    """
    if listing.store is None:
        return listing
    good = np.ones(len(listing), dtype=bool)
    bad = list(listing.skipped)
    if reading.verify or reading.skip_bad:
        for row, name in enumerate(listing.values):
            problem = _problem(listing, name, reading)
            if problem:
                good[row] = False
                part = None if listing.parts is None else int(listing.parts[row])
                bad.append(Skipped(part, f"{listing.store.describe(name)}: {problem}"))
    if bad and not reading.skip_bad:
        listed = "".join(f"\n  {skipped.reason}" for skipped in bad[:10])
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"{len(bad)} of the files in {listing.store.path} cannot be used:{listed}{more}\n"
            f"Repair or remove them, or leave them out with skip_bad (--skip-bad)."
        )
    return replace(listing if good.all() else listing.take(good), skipped=tuple(bad))


def _problem(listing: Listing, name: str, reading: Reading) -> str | None:
    assert listing.store is not None
    try:
        with listing.store.open(name) as stream:
            problem = find_problem(stream, reading.max_pixels)
            if reading.skip_bad and not problem:
                stream.seek(0)
                decode(stream, listing.store.describe(name), reading.max_pixels)
            return problem
    except DataError as error:
        return str(error)
