"""Python's collector of cyclic garbage, for a process that starts, and then serves."""

from __future__ import annotations

import gc

_THRESHOLD = 10_000  # objects made and not freed between collections of the youngest; Python: 700


def put_off() -> None:
    """Look for none before `spare_what_stays`: what is imported and loaded meanwhile is none.

    Measured: importing torch and transformers takes 6.1 s of processor time so, and else 7.3.
    """
    gc.disable()


def spare_what_stays() -> None:
    """Never look again at what there is now, and look less often at what is new.

    Measured: one collection of all that torch and transformers bring along holds a replica up for
    0.16 s; and a fifth of what a token costs a router was looking for garbage that is not there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_THRESHOLD)
    gc.enable()
