"""Servers whose rate, delays and errors are known: the report must give them back."""

import pytest

from tests.loadtest.conftest import fake, report_of, run, write_scenario

pytestmark = pytest.mark.loadtest


def test_delays_and_error_counts_come_back(tmp_path):
    load = {"shape": "constant", "rate_per_s": 120, "seconds": 8, "warm_up_s": 0}
    with fake(delay_ms=400, slow_every=20, slow_ms=1600, error_every=7) as server:
        code, output, errors = run(write_scenario(tmp_path, server.url, load), tmp_path / "out")
        counts = server.counts()
    assert code == 0, errors
    ((one,),) = [server["loads"] for server in report_of(tmp_path / "out")["servers"]]
    assert one["errors"] == {"503": counts["503"]}
    assert one["answered"] == counts["200"]
    assert one["requests"] == sum(counts.values())
    assert one["p50_ms"] == pytest.approx(400, rel=0.05)
    assert one["p90_ms"] == pytest.approx(400, rel=0.05)
    assert one["p99_ms"] == pytest.approx(1600, rel=0.05)
    assert one["mean_num_instances"] == 2
    assert one["agreement_with_n1"] == 1
    # It answers "positive" always, and every label is known.
    assert 0.35 < one["accuracy"] < 0.65
    assert "is no " not in errors
    assert "texts per second" in output


def test_a_known_rate_comes_back_and_waiting_counts_from_when_a_request_was_due(tmp_path):
    loads = [
        {"shape": "saturate", "clients": 60, "seconds": 6, "warm_up_s": 1},
        # Twice what it can answer: each second that passes, a second of work is left over.
        {"shape": "constant", "of_capacity": 2, "seconds": 6, "warm_up_s": 0},
    ]
    with fake(delay_ms=200, at_once=40) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, *loads), tmp_path / "out")
    assert code == 0, errors
    saturated, overloaded = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert saturated["texts_per_s"] == pytest.approx(200, rel=0.02)
    # The first answers come after 0.2 s, so the first second has a fifth less.
    rates = [point["texts_per_s"] for point in overloaded["timeline"][1:]]
    assert sum(rates) / len(rates) == pytest.approx(200, rel=0.02)
    assert overloaded["offered_per_s"] == pytest.approx(400, rel=0.1)
    # What is due in second t waits for t seconds' backlog: a test that waited with the server
    # would show 200 ms throughout.
    for second in (3, 5):
        waited_s = overloaded["timeline"][second]["p50_ms"] / 1000
        assert waited_s == pytest.approx(second + 0.5 + 0.2, rel=0.2)


def test_a_search_finds_the_capacity(tmp_path):
    search = {
        "shape": "search",
        "target_p99_ms": 400,
        "start_per_s": 100,
        "step_s": 4,
        "warm_up_s": 1,
        "max_steps": 3,
    }
    with fake(delay_ms=100, at_once=20) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, search), tmp_path / "out")
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    tried = [(step["rate_per_s"], step["passed"]) for step in one["steps"]]
    # 200/s is its capacity, where the line is at the mercy of chance.
    assert tried[0] == (100, True)
    assert (400, True) not in tried
    assert one["highest_rate_per_s"] in (100, 150, 200)
