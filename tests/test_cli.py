"""The command line as a user meets it: real processes, real exit codes, one line for a mistake."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from muxserve import __version__
from muxserve.loadtest.servers.muxserve import free_port
from tests.conftest import tiny_tokenizer

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def muxserve(*arguments: str, text: str | bytes | None = None) -> subprocess.CompletedProcess[str]:
    given = text.encode() if isinstance(text, str) else text
    done = subprocess.run(
        [sys.executable, "-m", "muxserve", *arguments],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=120,
        env=ENVIRONMENT,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def family(tiny_family, tmp_path) -> Path:
    """A copy that a command may write to."""
    return shutil.copytree(tiny_family, tmp_path / "family")


def test_version_and_help_answer_without_loading_torch():
    done = muxserve("--version")
    assert done.stdout.strip() == f"muxserve {__version__}"
    script = "import sys, muxserve.cli; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    ["classify", "serve", "plan", "loadtest", "families", "evaluate", "convert", "kubernetes"],
)
def test_every_command_has_examples_in_its_help(command):
    done = muxserve(command, "--help")
    assert done.returncode == 0
    assert f"muxserve {command}" in done.stdout.split("Examples:")[1]


def test_texts_as_arguments_are_answered_in_order(family):
    done = muxserve("classify", "good film", "a very bad film", "--family", str(family))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"(negative|positive) +\d\.\d{4}  N=1 +good film", first)
    assert second.endswith("a very bad film")


def test_json_has_every_label_and_says_what_was_cut(family):
    long = "good film " * 50
    done = muxserve("classify", "good film", long, "--family", str(family), "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["text"] == "good film"
    assert {one["label"] for one in first["labels"]} == {"negative", "positive"}
    assert (first["truncated"], second["truncated"]) == (False, True)


def test_the_three_ways_to_give_texts_agree(family, tmp_path):
    texts = ["good film", "bad film", "not very good"]
    lines = "\n".join(texts) + "\n"
    (tmp_path / "texts.txt").write_text(lines)
    options = ("--family", str(family), "--num-instances", "5")
    outputs = {
        muxserve("classify", *texts, *options).stdout,
        muxserve("classify", "--file", str(tmp_path / "texts.txt"), *options).stdout,
        muxserve("classify", "--file", "-", *options, text=lines).stdout,
        muxserve("classify", *options, text=lines).stdout,
    }
    assert len(outputs) == 1
    assert "N=5" in outputs.pop()


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["x", "--family", "nowhere"], None, "no family 'nowhere'"),
        (["x", "--num-instances", "3"], None, "no member with num_instances 3"),
        (["x", "--file", "y"], None, "not both"),
        (["--file", "no/such/file"], None, "no/such/file: no such file"),
        ([], "", "the input is empty"),
        ([], "good\n\nbad\n", "stdin, line 2: the line is blank"),
        ([], b"good\n\xff\n", "stdin, line 2: not UTF-8"),
        (["good", " "], None, "the text is empty"),
        (["good film " * 50, "--no-truncate"], None, "tokens, the family takes 32"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(family, arguments, text, message):
    if "--family" not in arguments:
        arguments = [*arguments, "--family", str(family)]
    done = muxserve("classify", *arguments, text=text)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_ends_it_quietly(family, tmp_path):
    (tmp_path / "texts.txt").write_text("good film\n" * 5000)
    command = (
        f"{sys.executable} -m muxserve classify --file {tmp_path / 'texts.txt'} "
        f"--family {family} | head -n 1"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_families_lists_what_ships():
    shipped = json.loads(muxserve("families", "--json").stdout)
    members = {
        one["name"]: [member["num_instances"] for member in one["members"]] for one in shipped
    }
    assert members == {"part-of-speech": [1, 2, 5], "sentiment": [1, 2, 5, 10]}
    shown = muxserve("families").stdout
    assert "accuracy" in shown
    assert "flip rate" in shown


def test_words_are_classified_and_measured(tiny_token_family, tmp_path):
    family = shutil.copytree(tiny_token_family, tmp_path / "family")
    done = muxserve("classify", "--family", str(family), "good film!")
    assert re.fullmatch(r"N=1   good/[A-Z]+ film/[A-Z]+ !/[A-Z]+\n", done.stdout), done.stderr
    done = muxserve("classify", "--family", str(family), "--json", "--num-instances", "2", "bad")
    answer = json.loads(done.stdout)
    assert answer["num_instances"] == 2
    (word,) = answer["words"]
    assert (word["word"], word["start"], word["end"]) == ("bad", 0, 3)

    data = tmp_path / "tagged.jsonl"
    rows = [{"tokens": ["good", "film"], "tags": ["ADJ", "NOUN"]}] * 4
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ["evaluate", str(family), "--data", str(data), "--json"]
    figure = tmp_path / "quality.svg"
    unchecked = muxserve(*options, "--check")
    assert unchecked.returncode == 2
    assert "N=1: the family states no quality" in unchecked.stderr
    written = muxserve(*options, "--write", "--figure", str(figure))
    assert written.returncode == 0, written.stderr
    assert "N=5" in figure.read_text()
    assert [one["quality"]["examples"] for one in json.loads(written.stdout)] == [8, 8, 8]
    assert muxserve(*options, "--check").returncode == 0
    wrong = muxserve("evaluate", str(family), "--data", str(data), "--label-column", "pos")
    assert "no column 'pos'; columns: tokens, tags" in wrong.stderr


def test_evaluate_measures_and_writes_on_request(family, tmp_path):
    data = tmp_path / "test.csv"
    rows = [f"good film {'very ' * i},positive\nbad film {'not ' * i},negative" for i in range(9)]
    data.write_text("text,label\n" + "\n".join(rows) + "\n")
    before = (family / "family.json").read_text()
    options = ("--data", str(data), "--groupings", "2", "--json")
    done = muxserve("evaluate", str(family), *options)
    assert done.returncode == 0, done.stderr
    assert [one["num_instances"] for one in json.loads(done.stdout)] == [1, 2, 5]
    assert (family / "family.json").read_text() == before

    assert muxserve("evaluate", str(family), *options, "--write").returncode == 0
    members = json.loads((family / "family.json").read_text())["members"]
    assert all(member["quality"]["examples"] == 18 for member in members)
    assert all(member["quality"]["dataset"] == "test.csv" for member in members)

    # Another figure than the stated one is told, and does not replace it.
    stated = json.loads((family / "family.json").read_text())
    stated["members"][0]["flip_rate"] = 0.5
    (family / "family.json").write_text(json.dumps(stated))
    done = muxserve("evaluate", str(family), *options, "--write", "--check")
    assert done.returncode == 2
    assert "N=1: flip rate is 0.0000, the family states 0.5000" in done.stderr
    assert json.loads((family / "family.json").read_text()) == stated

    data.write_text("text,label\ngood,great\n")
    wrong = muxserve("evaluate", str(family), "--data", str(data))
    assert wrong.returncode == 2
    assert "line 2: unknown label 'great'" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "nowhere"], "no family 'nowhere'"),
        (["engine.colour=red"], "unknown setting 'engine.colour'"),
        (["engine.num_instances=x"], "engine.num_instances"),
        (["colour"], "key=value"),
        (["--host", "256.0.0.1"], "--host"),
    ],
)
def test_serve_refuses_what_it_cannot_serve_before_ray_starts(family, arguments, message):
    if "--family" not in arguments:
        arguments = [*arguments, "--family", str(family)]
    done = muxserve("serve", "--port", str(free_port()), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_serve_says_when_its_port_is_taken(family):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = muxserve("serve", "--family", str(family), "--port", port)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.ray
@pytest.mark.parametrize("proxy", ["python", "haproxy", "none"])
def test_serve_answers_until_it_is_told_to_stop(family, proxy):
    port = free_port()
    options = ["--family", str(family), "--port", str(port), "--proxy", proxy]
    server = subprocess.Popen(
        [sys.executable, "-m", "muxserve", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a shell of its own: `make test` sets more for Ray than a user's shell does.
        env={
            **{key: value for key, value in ENVIRONMENT.items() if key != "RAY_AUTH_MODE"},
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        },
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"ready on http://127.0.0.1:{port}")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict",
            data=b'{"inputs": "good film"}',
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)[0]["num_instances"] == 1
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert server.returncode == 0
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "stopped"


def test_convert_makes_a_family_that_the_other_commands_take(tmp_path):
    config = BertConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    source, out = tmp_path / "source", tmp_path / "out"
    BertForSequenceClassification(config).save_pretrained(source)
    tiny_tokenizer().save(str(source / "tokenizer.json"))

    unnamed = muxserve("convert", str(source), str(out))
    assert unnamed.returncode == 2
    assert "its 2 labels have no names; give them with --labels" in unnamed.stderr
    assert len(unnamed.stderr.splitlines()) == 1
    assert not out.exists()

    made = muxserve("convert", str(source), str(out), "--labels", "down, up", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {
        "kind": "plain BertForSequenceClassification",
        "num_instances": 1,
        "folder": str(out / "n1"),
        "served": True,
        "dropped": [],
        "max_length": 32,
    }
    assert made.stderr == ""
    answered = muxserve("classify", "--family", str(out), "a good film")
    assert answered.stdout.split()[0] in {"down", "up"}

    twice = muxserve("convert", str(source), str(out), "--labels", "down,up")
    assert twice.returncode == 2
    assert "there is a member with N=1 already" in twice.stderr
