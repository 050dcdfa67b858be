"""What a server's counters say of the time between two looks."""

import pytest

from muxserve.loadtest.servers.watch import Look, stages_ms

FIRST = {
    "engines": [
        {"slots": 0, "filled_slots": 0, "batches": 0, "waiting": 0, "line_s": 0.0, "plan_s": 0.0,
         "computed_s": 0.0},
    ],
    "stages": {"requests": 0, "texts": 0, "tokens_s": 0.0, "backend_s": 0.0, "total_s": 0.0},
}  # fmt: skip
ENGINE = {"slots": 60, "filled_slots": 50, "batches": 10, "waiting": 3, "line_s": 2.0,
          "plan_s": 0.1, "computed_s": 1.0}  # fmt: skip
LAST = {
    "engines": [ENGINE, ENGINE, {"error": "it does not answer"}],
    "stages": {"requests": 100, "texts": 100, "tokens_s": 1.0, "backend_s": 7.0, "total_s": 9.0},
}


def test_engines_are_summed_and_what_they_do_not_tell_is_zero():
    assert Look.of(LAST).counters["filled_slots"] == 100
    told = Look.of({"engines": [{"slots": 4, "filled_slots": 2, "waiting": 1}]})
    assert (told.counters["slots"], told.counters["batches"], told.stages) == (4, 0, {})


def test_stages_add_up_to_the_whole_request():
    stages = stages_ms(Look.of(FIRST), Look.of(LAST))
    assert stages == pytest.approx(
        {"ingress": 10, "tokens": 10, "transport": 10, "line": 30, "plan": 10, "forward": 20}
    )
    assert sum(stages.values()) == pytest.approx(90)


def test_a_server_that_tells_no_stages_or_answered_no_texts_has_none():
    assert stages_ms(Look.of(LAST), Look.of(LAST)) is None
    assert stages_ms(Look.of({}), Look.of({"engines": []})) is None
