"""Python's cycle collector, kept away from the objects that a process has for good.

Every 700 new objects Python looks for cycles, and now and then through all objects, those of torch
and Ray included. In an ingress that was a fifth of its event loop's time.
"""

import gc

#: New objects between looks at the young ones. Requests leave hardly any cycles behind.
_YOUNG = 20_000


def collect_rarely() -> None:
    """Call once everything is loaded, in a process that is only there to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
