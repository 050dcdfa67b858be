"""Mistakes in a scenario are told with file, field and expectation; the shipped ones have none."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from muxserve.errors import InvalidInput
from muxserve.loadtest.scenario.overrides import at_url, lengthened, with_key
from muxserve.loadtest.scenario.scenario import ScenarioError, ServerSpec, TextsSpec, read_scenario
from muxserve.loadtest.scenario.texts import load_texts

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "loadtests" / "scenarios").glob("*.yaml"))
GOOD = "name: x\nservers: [{name: a}]\nload: [{shape: constant, rate_per_s: 5}]\n"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_scenarios_are_whole(file):
    scenario = read_scenario(file)
    assert scenario.name == file.stem
    assert scenario.description


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", ": not YAML: "),
        ("just text", "expected fields such as"),
        ("name: x\nload: []\nservers: [{name: a}]", "load: list should have at least 1 item"),
        ("name: x\nservers: [{name: a}]", "load: this field is required"),
        (GOOD.replace("rate_per_s: 5", "rate_per_s: -5"), "load[0].rate_per_s: "),
        (GOOD.replace("rate_per_s: 5", "rate_per_s: -5"), "greater than 0, got -5"),
        (GOOD.replace("rate_per_s: 5", "rate: 5"), "load[0].rate: no such field; known are"),
        (GOOD.replace("constant", "wave"), "load[0]: shape: expected one of burst, constant"),
        (GOOD.replace("shape: constant, ", ""), "load[0]: needs the field 'shape'"),
        (GOOD.replace(", rate_per_s: 5", ""), "exactly one of rate_per_s, of_capacity"),
        (GOOD.replace("rate_per_s: 5", "of_capacity: 1"), "need a load 'saturate' before"),
        (GOOD.replace("{name: a}", "{name: a, replica: 2}"), "servers[0].replica: no such field"),
        (GOOD.replace("{name: a}", "{name: a}, {name: a}"), "different names"),
        (GOOD.replace("{name: a}", "{name: a, url: ftp://x}"), "servers[0].url: expected http"),
        (GOOD.replace("{name: a}", "{name: a, url: http://x, peer: mosec}"), "or at a url"),
        (GOOD.replace("{name: a}", "{name: a, settings: [x]}"), "key=value, got 'x'"),
        (GOOD + "texts: {source: file}", "texts: source 'file' and the field 'file'"),
        (GOOD + "texts: {words: [9, 3]}", "words are [fewest, most], got [9, 3]"),
        (GOOD + "requests: soap", "requests: "),
        (
            GOOD.replace("{name: a}", "{name: a, load: [{shape: constant, rate: 5}]}"),
            "servers[0].load[0].rate: no such field; known are warm_up_s",
        ),
        (
            GOOD.replace("{name: a}", "{name: a, peer: mosec, requests: tokens}"),
            "peers take one text per request",
        ),
        (
            GOOD.replace("{name: a}", "{name: a, triton: alone, settings: [x=1]}"),
            "Triton alone takes no replicas, settings",
        ),
    ],
)
def test_a_mistake_names_file_field_and_expectation(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ScenarioError) as error:
        read_scenario(file)
    assert str(file) in str(error.value)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\ngood,positive\n,negative\n", "line 3: expected a text in 'text'"),
        ("a.csv", "text,label\ngood,\n", "line 2: expected a label's name in 'label'"),
        ("a.jsonl", '{"text": "good"\n', "line 1: expected a JSON object"),
        ("a.xml", "<x/>", "expected a .csv, .jsonl or .txt"),
        ("a.txt", "\n", "no texts"),
    ],
)
def test_a_mistake_in_texts_names_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    label = None if name == "a.txt" else "label"
    with pytest.raises(ScenarioError, match=name) as error:
        load_texts(TextsSpec(source="file", file=tmp_path / name, label_field=label), 0)
    assert message in str(error.value)


def test_texts_of_a_file_are_found_from_the_scenarios_folder(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"tokens": ["The", "jury"], "tags": ["DET", "NOUN"]}\n')
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"{GOOD}texts: {{source: file, file: mine.jsonl, text_field: tokens, label_field: tags}}\n"
    )
    (text,) = load_texts(read_scenario(file).texts, 0)
    assert (text.text, text.label) == ("The jury", ["DET", "NOUN"])


def test_opinions_are_different_labelled_and_repeatable():
    texts = load_texts(TextsSpec(count=6000), 3)
    assert len({one.text for one in texts}) == 6000
    assert {one.label for one in texts} == {"positive", "negative"}
    assert texts == load_texts(TextsSpec(count=6000), 3)
    assert 20 < sum(len(one.text.split()) for one in texts) / 6000 < 45


def test_a_scenario_is_varied_from_the_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    scenario = lengthened(at_url(read_scenario(file), "http://127.0.0.1:1"), 0.1)
    assert [one.url for one in scenario.servers] == ["http://127.0.0.1:1"]
    assert scenario.load[0].duration_s == pytest.approx(3)
    assert scenario.load[0].warm_up_s == pytest.approx(0.2)


def test_a_server_may_have_its_own_load_and_kind_of_request(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: x\nload: [{shape: saturate, seconds: 10}]\nservers:\n"
        "  - {name: a}\n"
        "  - {name: b, requests: ready, proxy: haproxy}\n"
        "  - {name: c, load: [{shape: burst, of_baseline: 2, steady_s: 3, burst_s: 4}]}\n"
    )
    scenario = read_scenario(file)
    shared, ready, burst = (scenario.seen_by(one) for one in scenario.servers)
    assert (shared.requests, shared.proxy) == ("text", "none")
    assert (ready.requests, ready.proxy, ready.load) == ("ready", "haproxy", shared.load)
    assert (burst.requests, burst.load[0].shape) == ("text", "burst")
    assert scenario.load_s == 10 + 10 + 10
    assert lengthened(scenario, 0.5).load_s == 15


def test_a_share_of_the_baseline_needs_the_first_servers_rate(tmp_path):
    file = tmp_path / "mine.yaml"
    share = "[{shape: constant, of_baseline: 1}]"
    file.write_text(f"{GOOD.replace('{name: a}', '{name: a}, {name: b, load: ' + share + '}')}")
    with pytest.raises(ScenarioError, match="need a load 'saturate' before them"):
        read_scenario(file)


def test_a_key_comes_from_a_file(tmp_path):
    file, key = tmp_path / "mine.yaml", tmp_path / "key"
    file.write_text(GOOD + "headers: {Authorization: old, x-a: b}\n")
    key.write_text("c0ffee-c0ffee-c0ffee\n")
    headers = with_key(read_scenario(file), key).headers
    assert headers == {"x-a": "b", "authorization": "Bearer c0ffee-c0ffee-c0ffee"}
    for wrong in ("", "two keys", "é" * 20):
        key.write_text(wrong)
        with pytest.raises(InvalidInput, match="expected one API key"):
            with_key(read_scenario(file), key)


def test_opinions_have_no_labels_for_a_family_of_others():
    known = load_texts(TextsSpec(count=20), 0, labels=["negative", "positive"])
    assert all(one.label for one in known)
    assert not any(one.label for one in load_texts(TextsSpec(count=20), 0, labels=["NOUN"]))


def test_a_label_of_a_file_that_the_family_does_not_have_is_named(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("text,label\nfine,1\n")
    spec = TextsSpec(source="file", file=file, label_field="label")
    assert load_texts(spec, 0)[0].label == "1"
    with pytest.raises(ScenarioError, match="'label' has '1', which is no label of the family"):
        load_texts(spec, 0, labels=["negative", "positive"])


@pytest.mark.parametrize("url", ["http://host:99999", "ftp://host", "http://", "http://host:x"])
def test_a_url_that_is_none_is_a_mistake(url):
    with pytest.raises(ValidationError, match="expected http://host:port"):
        ServerSpec(name="x", url=url)
