"""Peers without their environments: requests, answers, the plain model, when pip runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from muxserve.loadtest.servers import peers
from muxserve.loadtest.servers.peers import PEERS, Launch, PeerFailed, environment, running
from muxserve.loadtest.servers.plain_model import LABELS, write_plain_model
from muxserve.loadtest.servers.process import free_port
from tests.conftest import tiny_tokenizer

TEXT = 'He said "très bon"\nand left \N{SLIGHTLY SMILING FACE}'
SIZES = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64, "max_length": 16}


@pytest.fixture
def tokenizer_file(tmp_path):
    file = tmp_path / "tokenizer.json"
    tiny_tokenizer().save(str(file))
    return file


@pytest.fixture
def pip(monkeypatch):
    """Counts the commands that would make environments, instead of running them."""
    commands = []

    def run(command, **_):
        commands.append(command)
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(peers.subprocess, "run", run)
    return commands


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_body_carries_the_text_whole(peer):
    assert list(json.loads(peer.body(TEXT)).values()) in ([TEXT], [[TEXT]])


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_command_says_model_port_and_dtype_and_starts_what_is_there(peer):
    launch = Launch(Path("env/bin/python"), Path("model"), "127.0.0.1", 4321, 3, "bfloat16")
    command = peer.command(launch)
    assert {"model", "127.0.0.1", "4321", "bfloat16"} <= set(command)
    assert all(Path(part).is_file() for part in command if part.endswith(".py"))


def test_scores_stand_in_the_order_of_the_labels():
    answer = {"data": [[{"label": LABELS[1], "score": 0.9}, {"label": LABELS[0], "score": 0.1}]]}
    assert PEERS["infinity-emb"].scores(answer) == [0.1, 0.9]
    assert PEERS["mosec"].scores({"scores": [0.3, 0.7]}) == [0.3, 0.7]


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_requirements_are_exact(peer):
    if peer.requirements is None:
        return
    lines = peer.requirements.read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_the_plain_model_loads_as_any_hugging_face_folder(tmp_path, tokenizer_file):
    folder = write_plain_model(tmp_path / "model", tokenizer_file, vocab=64, **SIZES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = tokenizer(["good film", "bad " * 40], padding=True, truncation=True, return_tensors="pt")
    assert rows["input_ids"].shape == (2, SIZES["max_length"])
    assert rows["input_ids"][0, :4].tolist() == tokenizer.convert_tokens_to_ids(
        ["[CLS]", "good", "film", "[SEP]"]
    )
    assert model(**rows).logits.shape == (2, 2)
    assert tuple(model.config.id2label.values()) == LABELS
    assert json.loads((folder / "config.json").read_text())["id2label"]


def test_the_seed_alone_decides_the_weights(tmp_path, tokenizer_file):
    state = torch.random.get_rng_state()
    first, again, other = (
        write_plain_model(tmp_path / name, tokenizer_file, vocab=64, seed=seed, **SIZES)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path, tokenizer_file):
    with pytest.raises(ValueError, match="vocab is 8"):
        write_plain_model(tmp_path / "model", tokenizer_file, vocab=8, **SIZES)


@pytest.fixture
def peer(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("some-server==1.0\n")
    return replace(PEERS["mosec"], name="some-server", requirements=requirements)


def test_an_environment_is_made_once(peer, tmp_path, pip):
    python = environment(peer, tmp_path / "peers")
    assert python == tmp_path / "peers" / "some-server" / "bin" / "python"
    assert [("venv" in command, "pip" in command) for command in pip] == [
        (True, False),
        (False, True),
    ]
    assert environment(peer, tmp_path / "peers") == python
    assert len(pip) == 2


def test_changed_requirements_make_an_environment_anew(peer, tmp_path, pip):
    python = environment(peer, tmp_path / "peers")
    python.unlink()  # as `venv --clear` would
    python.parent.rmdir()
    peer.requirements.write_text("some-server==1.1\n")
    environment(peer, tmp_path / "peers")
    assert len(pip) == 4


def test_a_half_made_environment_is_made_anew(peer, tmp_path, monkeypatch):
    def fail(command, **_):
        python = Path(tmp_path / "peers" / "some-server" / "bin" / "python")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        return subprocess.CompletedProcess(command, 1 if "pip" in command else 0)

    monkeypatch.setattr(peers.subprocess, "run", fail)
    for _ in range(2):
        with pytest.raises(PeerFailed, match="pip install"):
            environment(peer, tmp_path / "peers")
    assert not (tmp_path / "peers" / "some-server" / "installed.txt").exists()


def test_a_peer_without_requirements_runs_here(peer, tmp_path):
    assert environment(replace(peer, requirements=None), tmp_path) == Path(sys.executable)


SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"scores": [0.25, 0.75]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_running_peer_classifies_and_counts_its_processor_time(peer, tmp_path):
    small = replace(peer, command=lambda launch: [sys.executable, "-c", SERVER, str(launch.port)])
    python, port = Path(sys.executable), free_port()
    with running(small, python, tmp_path, port=port, threads=1) as server:
        assert server.classify(TEXT) == [0.25, 0.75]
        assert server.url == f"http://127.0.0.1:{port}"
        if Path("/proc/self/stat").exists():
            assert 0 < server.cpu_seconds() < 60
        with (
            pytest.raises(PeerFailed, match="in use"),
            running(small, python, tmp_path, port=port, threads=1),
        ):
            pass
    with pytest.raises(OSError, match="refused"):
        server.classify(TEXT)


def test_a_peer_that_ends_is_reported_with_its_log(peer, tmp_path):
    script = "import sys; print('no such model'); sys.exit(3)"
    broken = replace(peer, command=lambda _: [sys.executable, "-c", script])
    with (
        pytest.raises(PeerFailed, match=r"(?s)ended with 3 .*no such model"),
        running(broken, Path(sys.executable), tmp_path, port=free_port(), threads=1),
    ):
        pass


def test_a_peer_that_answers_no_scores_is_not_ready(peer, tmp_path):
    odd = replace(
        peer,
        command=lambda launch: [sys.executable, "-c", SERVER, str(launch.port)],
        scores=lambda answer: answer["nothing"],
    )
    with (
        pytest.raises(PeerFailed, match=r"classified nothing within 2 s.*no scores"),
        running(odd, Path(sys.executable), tmp_path, port=free_port(), threads=1, start_limit_s=2),
    ):
        pass
