"""``muxserve plan`` as a user runs it."""

import json

import pytest

from tests.test_cli import muxserve


@pytest.fixture(scope="module")
def forward_times(tiny_family, tmp_path_factory):
    """Forward times of the tiny family, measured once."""
    file = tmp_path_factory.mktemp("times") / "times.json"
    done = muxserve(
        "plan", "--family", str(tiny_family), "--rate", "50:1", "--save-times", str(file)
    )
    assert done.returncode == 0, done.stderr
    return file


def test_plan_says_how_many_replicas_each_n_needs(tiny_family, forward_times, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("good film\na very bad film\n")
    options = ["plan", "--family", str(tiny_family), "--times", str(forward_times)]
    options += ["--texts", str(texts), "--target-ms", "100", "--cost-per-hour", "2"]
    plans = json.loads(muxserve(*options, "--rate", "20:2,200:1,20:2", "--json").stdout)["plans"]
    assert [one["num_instances"] for one in plans] == ["1", "2", "5", "elastic"]
    assert all(one["meets_target"] and one["cost_per_hour"] == 2 * one["replicas"] for one in plans)
    assert plans[-1]["timeline"][0]["texts_per_s"] == pytest.approx(20, rel=0.9)
    shown = muxserve(*options, "--rate", "20:2").stdout
    assert "elastic over time" in shown


def test_what_is_shed_has_no_latency_and_the_json_stays_json(tiny_family, tmp_path):
    """One replica that takes a second a forward, asked for far more than its line holds."""
    seconds = [
        {"num_instances": n, "length": length, "seconds": [1.0]}
        for n in (1, 2, 5)
        for length in (8, 32)
    ]
    times = tmp_path / "times.json"
    table = {"lengths": [8, 32], "groups": [1], "seconds": seconds}
    times.write_text(
        json.dumps({"family": "tiny", "machine": {}, "in_flight": 1, **table}), encoding="utf-8"
    )
    options = ["plan", "--family", str(tiny_family), "--times", str(times), "--max-replicas", "1"]
    done = muxserve(*options, "--rate", "6000:1", "--json")
    assert done.returncode == 0, done.stderr

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    plans = json.loads(done.stdout, parse_constant=refuse)["plans"]
    assert plans[0]["shed"] > 0
    assert plans[0]["p99_ms"] is None
    assert plans[0]["p50_ms"] > 0
    row = muxserve(*options, "--rate", "6000:1").stdout.splitlines()[2]
    assert "(not enough)" in row
    assert " - " in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "fast"], "--rate: RATE or RATE:SECONDS"),
        (["--rate", "10:0"], "--rate: RATE or RATE:SECONDS"),
        (["--rate", "1000000:60"], "shorten the stretches"),
        (["--rate", "0:5"], "no text would arrive"),
        (["--rate", "10", "--texts", "{empty}"], "no text in it"),
        (["--rate", "10", "--texts", "missing.txt"], "missing.txt"),
        (["--rate", "10", "--times", "{empty}"], "not what --save-times writes"),
        (["--rate", "10", "--times", "{times}", "--save-times", "x"], "leave --times out"),
    ],
)
def test_plan_tells_what_it_cannot_read(tiny_family, forward_times, tmp_path, arguments, message):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    filled = [one.format(empty=empty, times=forward_times) for one in arguments]
    options = [] if "--times" in filled else ["--times", str(forward_times)]
    done = muxserve("plan", "--family", str(tiny_family), *options, *filled)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
