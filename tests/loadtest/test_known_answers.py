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
    assert one["p50_ms"] == pytest.approx(400, rel=0.25)
    assert one["p90_ms"] == pytest.approx(400, rel=0.25)
    assert one["p99_ms"] == pytest.approx(1600, rel=0.25)
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
    assert saturated["texts_per_s"] == pytest.approx(200, rel=0.15)
    # The first answers come after 0.2 s, so the first second has a fifth less.
    rates = [point["texts_per_s"] for point in overloaded["timeline"][1:]]
    assert sum(rates) / len(rates) == pytest.approx(200, rel=0.15)
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


def test_a_request_that_was_dropped_is_an_error_and_is_not_sent_again(tmp_path):
    load = {"shape": "constant", "rate_per_s": 100, "seconds": 4, "warm_up_s": 0}
    with fake(reset_every=10) as server:
        code, _, errors = run(write_scenario(tmp_path, server.url, load), tmp_path / "out")
        counts = server.counts()
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert counts["reset"] > 20
    assert one["errors"] == {"connection": counts["reset"]}
    assert one["answered"] == counts["200"]
    assert one["requests"] == sum(counts.values())


def test_a_share_of_the_capacity_is_in_requests_where_each_has_many_texts(tmp_path):
    loads = [
        {"shape": "saturate", "clients": 60, "seconds": 4, "warm_up_s": 1},
        {"shape": "constant", "of_capacity": 0.5, "seconds": 4, "warm_up_s": 0},
    ]
    with fake(delay_ms=200, at_once=20) as server:
        scenario = write_scenario(
            tmp_path, server.url, *loads, requests="texts", texts_per_request=8
        )
        code, _, errors = run(scenario, tmp_path / "out")
    assert code == 0, errors
    saturated, half = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert saturated["texts_per_s"] == pytest.approx(8 * 100, rel=0.15)
    assert half["offered_per_s"] == pytest.approx(50, rel=0.25)


def test_labels_that_a_server_never_gives_are_no_accuracy(tmp_path):
    with fake(label="sports") as server:
        load = {"shape": "constant", "rate_per_s": 50, "seconds": 2, "warm_up_s": 0}
        code, output, errors = run(write_scenario(tmp_path, server.url, load), tmp_path / "out")
    assert code == 0, errors
    report = report_of(tmp_path / "out")
    assert report["servers"][0]["loads"][0]["accuracy"] is None
    assert "No accuracy: the server's labels (sports) are none of those of the texts" in output


def test_headers_are_sent_everywhere_and_told_nowhere(tmp_path):
    secret = "Bearer abc123"
    load = {"shape": "constant", "rate_per_s": 50, "seconds": 2, "warm_up_s": 0}
    with fake(authorization=secret) as server:
        headers = {"authorization": secret}
        scenario = write_scenario(tmp_path, server.url, load, headers=headers)
        code, output, errors = run(scenario, tmp_path / "out", "--json")
    assert code == 0, errors
    (one,) = report_of(tmp_path / "out")["servers"][0]["loads"]
    assert one["errors"] == {}
    assert one["agreement_with_n1"] == 1
    assert one["occupancy"] is not None
    for file in (tmp_path / "out").iterdir():
        assert "abc123" not in file.read_text(), file.name
    assert "abc123" not in output
