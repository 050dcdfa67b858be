"""What one caller sees of another one's flood, in the engine's own policy and planner."""

from collections import Counter

import pytest

from muxserve.engine.times import ForwardTimes
from muxserve.planning.simulation import Phase, Replicas, Simulated, SimulatedText, poisson_arrivals
from muxserve.planning.simulation import simulate as simulated

WIDTHS = (1, 2, 5, 10)
TARGET_S = 0.05
#: Seconds for which the quiet caller asks.
SECONDS = 2.0


def measured_times() -> ForwardTimes:
    """As the shipped family's on one thread of two: 1 ms, and 35 us a token of a row."""
    times = ForwardTimes([16, 32, 64, 128], [1, 2, 4, 8, 16, 32])
    for n in WIDTHS:
        for length in times.lengths:
            row = 3.5e-5 * length * (1 + 0.04 * n)
            times.set(n, length, [1e-3 + row * groups for groups in times.groups])
    return times


def quiet(seconds: float = SECONDS) -> list[SimulatedText]:
    texts = poisson_arrivals([Phase(50, seconds)], [8, 20, 40, 70], seed=1)
    for text in texts:
        text.caller = "quiet"
    return texts


def flood(cap: int | None, seconds: float = SECONDS) -> list[SimulatedText]:
    """Twelve connections with 512 texts each, and all that can be served again all the time."""
    texts = [SimulatedText(0.0, 10, cap, caller="flood") for _ in range(12 * 512 - 2000)]
    for step in range(int(4 * seconds)):
        texts += [
            SimulatedText(step / 4, 10 + index * 37 % 60, cap, caller="flood")
            for index in range(2000)
        ]
    return texts


def run(*texts: list[SimulatedText], in_flight: int = 2) -> Simulated:
    together = sorted((one for some in texts for one in some), key=lambda one: one.arrival_s)
    return simulated(together, measured_times(), Replicas(1, WIDTHS, TARGET_S, in_flight))


def latencies_s(result: Simulated, caller: str) -> list[float]:
    own = zip(result.callers, result.latencies_s, strict=True)
    return sorted(latency for one, latency in own if one == caller)


@pytest.mark.parametrize("cap", [1, None])
def test_a_quiet_caller_is_served_within_the_target_beside_a_flood(cap):
    result = run(quiet(), flood(cap))
    seen = latencies_s(result, "quiet")
    assert len(seen) == len(quiet())
    assert result.shed_by["quiet"] == 0
    assert result.shed_by["flood"] > 0
    assert seen[int(0.99 * len(seen))] <= TARGET_S
    widths = zip(result.callers, result.num_instances, strict=True)
    assert {n for caller, n in widths if caller == "quiet"} == {1}, "and as if he were alone"


def test_callers_that_always_wait_get_equal_parts_whatever_their_texts_cost():
    """One whose texts take whole rows is served fewer of them."""
    texts = [
        SimulatedText(0.0, length, cap, caller=caller)
        for _ in range(1200)
        for caller, cap, length in (("a", 1, 30), ("b", 1, 30), ("c", 1, 60))
    ]
    result = run(texts)
    served = Counter(result.callers[: len(texts) // 3])
    tokens = {caller: served[caller] * (60 if caller == "c" else 30) for caller in "abc"}
    assert max(tokens.values()) - min(tokens.values()) <= 2 * 32 * 60


def test_one_caller_alone_is_served_as_if_there_were_no_turns():
    """Whoever it is: nothing depends on the name."""
    named, nameless = flood(None, 1.0), flood(None, 1.0)
    for text in nameless:
        text.caller = ""
    assert run(named).latencies_s == run(nameless).latencies_s


def test_many_that_ask_for_little_are_served_as_one_is():
    """Each text of another caller: the same batches, so the same latencies."""
    one = poisson_arrivals([Phase(1500, 1.5)], [8, 20, 40, 70], seed=2)
    many = poisson_arrivals([Phase(1500, 1.5)], [8, 20, 40, 70], seed=2)
    for index, text in enumerate(many):
        text.caller = str(index % 256)
    assert run(many).quantile_s(0.99) == pytest.approx(run(one).quantile_s(0.99), rel=0.1)
    assert run(many).busy_s == pytest.approx(run(one).busy_s, rel=0.02)
