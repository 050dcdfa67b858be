"""A scenario with one thing changed from the command line."""

from typing import Any

from muxserve.loadtest.scenario import Scenario, ServerSpec
from muxserve.loadtest.shapes import Shape


def at_url(scenario: Scenario, url: str) -> Scenario:
    """The same load on a server that runs already."""
    changed = scenario.model_dump()
    changed["servers"] = [ServerSpec(name=url[:60], url=url).model_dump()]
    return Scenario.model_validate(changed)


def lengthened(scenario: Scenario, factor: float) -> Scenario:
    """Every load so many times as long; warm-ups too, where they get shorter."""
    if factor == 1:
        return scenario
    return scenario.model_copy(update={"load": [_longer(one, factor) for one in scenario.load]})


def _longer(shape: Shape, factor: float) -> Shape:
    times = ("seconds", "steady_s", "burst_s", "day_s", "step_s")
    changed: dict[str, Any] = {
        name: getattr(shape, name) * factor for name in times if hasattr(shape, name)
    }
    changed["warm_up_s"] = shape.warm_up_s * min(1.0, factor)
    return type(shape).model_validate({**shape.model_dump(), **changed})
