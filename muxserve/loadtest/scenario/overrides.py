"""A scenario with one thing changed from the command line."""

from pathlib import Path
from typing import Any

from muxserve.errors import InvalidInput
from muxserve.loadtest.scenario.scenario import Scenario, ServerSpec
from muxserve.loadtest.scenario.shapes import Shape


def at_url(scenario: Scenario, url: str) -> Scenario:
    """The same load on a server that runs already."""
    changed = scenario.model_dump()
    changed["servers"] = [ServerSpec(name=url[:60], url=url).model_dump()]
    return Scenario.model_validate(changed)


def with_key(scenario: Scenario, file: Path) -> Scenario:
    """The same load with an API key, which a file has so that no command line shows it.

    Raises:
        InvalidInput: there is no key in it.
        OSError: it cannot be read.
    """
    key = file.read_text(encoding="ascii", errors="replace").strip()
    if not key.isascii() or len(key.split()) != 1:
        raise InvalidInput(f"{file}: expected one API key and nothing else", field="--key-file")
    kept = {k: value for k, value in scenario.headers.items() if k.lower() != "authorization"}
    headers = {**kept, "authorization": f"Bearer {key}"}
    return scenario.model_copy(update={"headers": headers})


def lengthened(scenario: Scenario, factor: float) -> Scenario:
    """Every load so many times as long; warm-ups too, where they get shorter."""
    if factor == 1:
        return scenario
    servers = [
        one.model_copy(update={"load": [_longer(load, factor) for load in one.load]})
        for one in scenario.servers
    ]
    load = [_longer(one, factor) for one in scenario.load]
    return scenario.model_copy(update={"load": load, "servers": servers})


def _longer(shape: Shape, factor: float) -> Shape:
    times = ("seconds", "steady_s", "burst_s", "day_s", "step_s")
    changed: dict[str, Any] = {
        name: getattr(shape, name) * factor for name in times if hasattr(shape, name)
    }
    changed["warm_up_s"] = shape.warm_up_s * min(1.0, factor)
    return type(shape).model_validate({**shape.model_dump(), **changed})
