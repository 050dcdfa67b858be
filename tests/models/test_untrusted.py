"""A folder from anywhere: what it claims is checked first, and the answer is one line."""

import base64
import copy
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from muxserve.cli import app
from muxserve.engine.config import EngineConfig
from muxserve.engine.engine import Engine
from muxserve.engine.tokens import TextEncoder
from muxserve.errors import FamilyError
from muxserve.models.charsmap import charsmap_fault
from muxserve.models.checkpoint import read_config
from muxserve.models.convert import convert
from muxserve.models.family import Family, check_family, read_spec, write_spec
from muxserve.models.files import MOST_DEPTH, read_json
from muxserve.training.recipe import StageRecipe
from muxserve.training.stages.start import stage_network
from tests.conftest import PIECES, tiny_plain_config, tiny_tokenizer

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def family(tiny_family, tmp_path) -> Path:
    """A copy that may be broken, without checksums: what is tested is the rest."""
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    edit(folder / "family.json", lambda content: content.pop("checksums"))
    return folder


@pytest.fixture(scope="module")
def plain_start(tmp_path_factory) -> Path:
    """A plain classifier with its tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    names = {0: "negative", 1: "positive"}
    config = tiny_plain_config(
        id2label=names, label2id={name: index for index, name in names.items()}
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def plain(plain_start, tmp_path) -> Path:
    """A copy of it that may be broken."""
    return shutil.copytree(plain_start, tmp_path / "plain")


def edit(file: Path, change: Change) -> None:
    """Change the JSON of a file, or replace it by what ``change`` returns as text."""
    content = json.loads(file.read_text())
    made = change(content)
    file.write_text(made if isinstance(made, str) else json.dumps(content))


def setting(**fields: Any) -> Change:
    return lambda content: content.update(fields)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


#: Broken config.json -> the field or the reason that is told.
CONFIGS: dict[str, tuple[Change, str]] = {
    "a list": (lambda _: "[]", "not a JSON object"),
    "null": (lambda _: "null", "not a JSON object"),
    "a number of digits": (lambda _: f'{{"hidden_size": {"9" * 5000}}}', "not JSON"),
    "deep": (lambda _: nested(100_000), "nested more than 32"),
    "deep within": (lambda _: f'{{"a": {nested(40)}}}', "nested more than 32"),
    "not UTF-8": (lambda _: '"\\ud800', "not JSON"),
    "labels": (setting(num_labels=10**9, id2label=None), "num_labels"),
    "label at 10^8": (setting(id2label={"0": "a", "100000000": "b"}), "id2label"),
    "labels as a list": (setting(id2label=["a", "b"]), "id2label"),
    "labels of lists": (setting(id2label={"0": ["a"], "1": "b"}), "id2label"),
    "layers": (setting(num_hidden_layers=10**5), "num_hidden_layers"),
    "hidden size": (setting(hidden_size=2**40), "hidden_size"),
    "hidden size as text": (setting(hidden_size="16"), "hidden_size"),
    "hidden size null": (setting(hidden_size=None), "hidden_size"),
    "vocabulary": (setting(vocab_size=10**12), "vocab_size"),
    "vocabulary as a list": (setting(vocab_size=[5]), "vocab_size"),
    "positions": (setting(max_position_embeddings=10**10), "max_position_embeddings"),
    "intermediate": (setting(intermediate_size=2**62), "intermediate_size"),
    "no heads": (setting(num_attention_heads=0), "num_attention_heads"),
    "heads that do not divide": (setting(num_attention_heads=3), "multiple|divi"),
    "true heads": (setting(num_attention_heads=True), "num_attention_heads"),
    "architectures": (setting(architectures={"a": 1}), "architectures"),
    "padding": (setting(pad_token_id=10**6), "pad_token_id"),
    "activation": (setting(hidden_act="nothing"), "nothing"),
    "dtype": (setting(dtype="os"), "dtype"),
    "model type": (setting(model_type="trap"), "model_type"),
    "model type as a list": (setting(model_type=["bert"]), "model_type"),
    "quantized": (setting(quantization_config={"bits": 4}), "quantization_config"),
}
#: Those that only a MUX-PLM has.
MUX_CONFIGS: dict[str, tuple[Change, str]] = {
    "N": (setting(num_instances=10**9, widths=[1, 10**9]), "num_instances"),
    "demultiplexer": (setting(num_hidden_demux_layers=10**6), "num_hidden_demux_layers"),
    "first token": (setting(first_token_id=-5), "first_token_id"),
    "widths as text": (setting(widths="1"), "widths"),
}


def told(error: FamilyError) -> str:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("name", [*CONFIGS, *MUX_CONFIGS])
def test_a_config_that_claims_what_cannot_be_is_one_line(family, name):
    change, field = {**CONFIGS, **MUX_CONFIGS}[name]
    edit(family / "weights" / "config.json", change)
    for read in (Family.load, check_family):
        with pytest.raises(FamilyError, match=rf"config\.json: .*({field})") as raised:
            read(family)
        told(raised.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_that_claims_what_cannot_be_is_one_line(plain, name, tmp_path):
    change, field = CONFIGS[name]
    edit(plain / "config.json", change)
    with pytest.raises(FamilyError, match=field) as raised:
        convert(str(plain), tmp_path / "out")
    told(raised.value)
    assert not (tmp_path / "out").exists()
    recipe = StageRecipe(
        stage="finetune",
        start=str(plain),
        out=tmp_path / "trained",
        data=str(tmp_path / "data.csv"),
    )
    with pytest.raises(FamilyError, match=field):
        stage_network(recipe, ["a", "b"])


def test_many_small_claims_that_are_large_together_are_refused(plain):
    # Each side could be one of its tensors, and the network would have 30 GB.
    edit(
        plain / "config.json",
        setting(
            hidden_size=2000, intermediate_size=2000, num_hidden_layers=60, num_attention_heads=2
        ),
    )
    with pytest.raises(FamilyError, match=r"claims a network of [0-9,]+ values"):
        read_config(plain)


def test_orders_of_a_config_are_not_followed(plain, tmp_path):
    orders = {
        "_attn_implementation": "kernels-community/flash-attn2",
        "attn_implementation": "kernels-community/flash-attn2",
        "auto_map": {"AutoConfig": "trap.Config"},
        "return_dict": False,
        "to_dict": 5,
    }
    edit(plain / "config.json", setting(**orders))
    made = convert(str(plain), tmp_path / "out")
    stored = json.loads((made.folder / "config.json").read_text())
    assert not set(orders) & set(stored)
    assert Family.load(tmp_path / "out").widths == [1]


TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
AROUND = {"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "a"}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def template(*pieces: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": list(pieces),
        "pair": [],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)}},
    }


CLS = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def charsmap(units: list[int], replacements: bytes = b"x\0") -> str:
    trie = b"".join(struct.pack("<I", unit) for unit in units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + replacements).decode()


def normalizer(step: dict[str, Any]) -> Change:
    return setting(normalizer=step)


#: Broken tokenizer.json -> what is told.
TOKENIZERS: dict[str, tuple[Change, str]] = {
    "a list": (lambda _: "[]", "not a tokenizer file"),
    "deep": (lambda _: nested(100_000), "nested more than"),
    "no model": (setting(model=None), "model"),
    "another model": (lambda t: t["model"].update(type="Evil"), "model.type"),
    "id 2^31": (lambda t: t["model"]["vocab"].update(good=2**31), "2,147,483,648"),
    "negative id": (lambda t: t["model"]["vocab"].update(good=-1), "model.vocab"),
    "id as text": (lambda t: t["model"]["vocab"].update(good="5"), "model.vocab"),
    "id beyond the table": (lambda t: t["model"]["vocab"].update(good=len(PIECES)), "model.vocab"),
    "one more piece": (lambda t: t["model"]["vocab"].update(new=1), "another model's"),
    "added id": (
        lambda t: t["added_tokens"].append({**TOKEN, "id": 2**31, "content": "x", "special": True}),
        "added_tokens.*id",
    ),
    "added nothing": (
        lambda t: t["added_tokens"].append({**TOKEN, "id": 1, "content": "", "special": True}),
        "added_tokens.*content",
    ),
    "vocab as a number": (lambda t: t["model"].update(vocab=5), "model.vocab"),
    "long words": (lambda t: t["model"].update(max_input_chars_per_word=10**9), "max_input_chars"),
    "doubling": (normalizer(sequence(*[DOUBLING] * 40)), "times as long"),
    "doubling within": (normalizer(sequence(sequence(*[DOUBLING] * 20), *[AROUND] * 5)), "times"),
    "around": (normalizer(sequence(*[AROUND] * 20)), "times as long"),
    "prepending": (normalizer(sequence(*[{"type": "Prepend", "prepend": "a"}] * 20)), "times"),
    "long prefix": (normalizer({"type": "Prepend", "prepend": "a" * 1000}), "times as long"),
    "many steps": (normalizer(sequence(*[{"type": "Lowercase"}] * 300)), "steps"),
    "replacement of a list": (normalizer({**DOUBLING, "content": ["a"]}), "content"),
    "charsmap": (
        normalizer({"type": "Precompiled", "precompiled_charsmap": charsmap([1 << 30])}),
        "precompiled_charsmap",
    ),
    "charsmap of nothing": (
        normalizer({"type": "Precompiled", "precompiled_charsmap": "AAEC"}),
        "precompiled_charsmap",
    ),
    "special id": (
        setting(post_processor=template(CLS, TEXT, ids=[2**31])),
        "special_tokens.*2,147,483,648",
    ),
    "special flood": (setting(post_processor=template(*[CLS] * 90, TEXT, ids=[2])), "adds 90"),
    "special ids": (setting(post_processor=template(CLS, TEXT, ids=[2] * 100)), "adds 100"),
    "no text": (setting(post_processor=template(CLS, ids=[2])), "must have a text once"),
    "text twice": (setting(post_processor=template(TEXT, TEXT, ids=[2])), "must have a text once"),
    "special token of nowhere": (
        setting(
            post_processor=template({"SpecialToken": {"id": "?", "type_id": 0}}, TEXT, ids=[2])
        ),
        "none of special_tokens",
    ),
    "separator": (
        setting(post_processor={"type": "BertProcessing", "sep": ["a", 10**9], "cls": ["b", 1]}),
        "post_processor.sep",
    ),
    "truncation": (setting(truncation={"max_length": 10**30}), "truncation"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_would_hurt_is_one_line(family, plain, name, tmp_path, capfd):
    change, reason = TOKENIZERS[name]
    edit(family / "tokenizer.json", change)
    edit(plain / "tokenizer.json", change)
    for read in (Family.load, check_family, lambda _: convert(str(plain), tmp_path / "out")):
        with pytest.raises(FamilyError, match=rf"tokenizer\.json: .*{reason}") as raised:
            read(family)
        told(raised.value)
    assert "panicked" not in capfd.readouterr().err


def test_a_tokenizer_with_a_large_id_is_refused_where_no_network_is_known(family):
    edit(family / "tokenizer.json", TOKENIZERS["id 2^31"][0])
    with pytest.raises(FamilyError, match="2,147,483,648"):
        Family.load(family, widths=[])  # as an ingress does


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        sequence({"type": "Prepend", "prepend": "▁"}, {"type": "NFKC"}, {"type": "Lowercase"}),
    ],
)
def test_what_tokenizers_of_the_field_replace_is_taken(family, step):
    edit(family / "tokenizer.json", normalizer(step))
    assert TextEncoder.of_family(Family.load(family)).encode(["a good film"])[0].ids.size


def test_a_charsmap_that_stays_in_itself_is_taken():
    # One character, 'a' (97), replaced by 'x': its node is 97 ^ 128, whose leaf is at base 0 ^ ...
    units = [0] * 256
    units[0] = 0  # the root's base is 0: a character's node is at the character
    units[97] = 97 | 1 << 8 | 200 << 10  # label, has a leaf, leaf at 97 ^ 200
    units[97 ^ 200] = 1 << 31 | 0
    assert charsmap_fault(charsmap(units)) is None
    units[97 ^ 200] = 1 << 31 | 5
    assert "replacements" in (charsmap_fault(charsmap(units)) or "")
    units[97] = 97 | 1 << 8 | 9999 << 10
    assert "outside" in (charsmap_fault(charsmap(units)) or "")
    assert "bytes" in (charsmap_fault(charsmap([0] * 256, b"y" * 1000)) or "")


PATHS = [
    "x" * 300,
    "../other",
    "/etc/passwd",
    "a/../../b",
    "C:\\windows",
    "..\\x",
    "",
    "a\0b",
    "\n",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_out_of_the_folder_is_refused(family, path):
    (family.parent / "x").write_text("{}")
    for field, change in (
        ("tokenizer", setting(tokenizer=path)),
        ("members.0.path", lambda content: content["members"][0].update(path=path)),
    ):
        before = (family / "family.json").read_text()
        edit(family / "family.json", change)
        with pytest.raises(FamilyError, match=f"field {field}: .*path within the folder"):
            read_spec(family)
        (family / "family.json").write_text(before)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "weights", "weights/config.json", "weights/model.safetensors"]
)
def test_a_link_out_of_the_folder_is_refused(family, name):
    moved = family.parent / "moved"
    (family / name).rename(moved)
    (family / name).symlink_to(moved)
    with pytest.raises(FamilyError, match=rf"{Path(name).name}.*link out of the folder"):
        Family.load(family)


def test_a_link_in_a_circle_is_refused(family):
    (family / "tokenizer.json").unlink()
    (family / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(FamilyError, match="tokenizer"):
        Family.load(family)


def test_links_of_the_hubs_cache_work(family, tmp_path):
    """snapshots/REVISION has links to ../../blobs/HASH; and a link further out is refused."""
    home = tmp_path / "models--a--b"
    snapshot, blobs = home / "snapshots" / "abc", home / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in family.rglob("*") if one.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(family)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert Family.load(snapshot).widths == [1, 2, 5]
    outside = tmp_path / "outside.json"
    shutil.copy(family / "tokenizer.json", outside)
    blob = (snapshot / "tokenizer.json").resolve()
    blob.unlink()
    blob.symlink_to(outside)
    with pytest.raises(FamilyError, match="link out of the folder"):
        Family.load(snapshot)


def test_a_folder_that_is_a_link_works(family, tmp_path):
    (tmp_path / "link").symlink_to(family)
    assert Family.load(tmp_path / "link").widths == [1, 2, 5]


@pytest.mark.parametrize("labels", [["same", "same"], ["a", " "]])
def test_labels_that_nobody_can_tell_apart_are_refused(family, plain, labels, tmp_path):
    edit(family / "family.json", setting(labels=labels))
    with pytest.raises(FamilyError, match=r"family\.json: field labels: .*label"):
        read_spec(family)
    edit(plain / "config.json", setting(id2label=dict(enumerate(labels)), label2id=None))
    with pytest.raises(FamilyError, match=r"id2label: .*label"):
        convert(str(plain), tmp_path / "out")


FILES = ["tokenizer.json", "weights/config.json", "weights/model.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused(tiny_family, tmp_path, name):
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    assert sorted(read_spec(folder).checksums or {}) == FILES
    file = folder / name
    content = bytearray(file.read_bytes())
    if name.endswith(".json"):
        content += b" "  # it says what it said, in other bytes
    else:
        content[-3] ^= 1
    file.write_bytes(content)
    for read in (Family.load, check_family, Engine.from_family):
        with pytest.raises(FamilyError, match=rf"{file.name}: .*checksum") as raised:
            read(folder)
        assert raised.value.field == "checksums"
    assert Family.load(folder, verify_checksums=False).widths == [1, 2, 5]
    config = EngineConfig(verify_checksums=False, warm_up_s=0.01)
    with Engine.from_family(folder, config) as engine:
        assert len(engine.classify(["good film"])) == 1


def test_a_family_without_checksums_loads_and_gets_them_when_it_is_written(family):
    assert Family.load(family).spec.checksums is None
    write_spec(family, read_spec(family))
    assert sorted(read_spec(family).checksums or {}) == FILES


def test_writing_keeps_a_checksum_of_what_changed_meanwhile(tiny_family, tmp_path):
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    spec = Family.load(folder).spec
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    write_spec(folder, spec)
    with pytest.raises(FamilyError, match="checksum"):
        Family.load(folder)


@pytest.mark.parametrize("name", ["sentiment", "part-of-speech"])
def test_the_shipped_families_are_what_they_were(name):
    assert sorted(check_family(name).checksums or {}) == FILES


def test_what_is_converted_has_checksums(plain, tmp_path):
    convert(str(plain), tmp_path / "out")
    sums = read_spec(tmp_path / "out").checksums
    assert sorted(sums or {}) == ["n1/config.json", "n1/model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]"]
)
def test_weights_that_are_none_are_one_line(family, content):
    (family / "weights" / "model.safetensors").write_bytes(content)
    with pytest.raises(FamilyError, match=r"model\.safetensors: not a safetensors file") as raised:
        Family.load(family)
    told(raised.value)


def test_depth_is_bounded_and_what_is_below_is_read(tmp_path):
    file = tmp_path / "deep.json"
    file.write_text(nested(MOST_DEPTH))
    assert read_json(file)
    file.write_text(nested(MOST_DEPTH + 1))
    with pytest.raises(FamilyError, match="nested"):
        read_json(file)


def test_nothing_reads_a_config_or_a_tokenizer_but_what_checks_it():
    package = Path(__file__).parents[2] / "muxserve"
    unchecked = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"Tokenizer\.from_file|AutoConfig\.from_pretrained", file.read_text())
    }
    # What an export wrote of a checked family, and a benchmark of a model that it wrote itself.
    assert unchecked == {"triton/runtime/tokenizer_model.py", "loadtest/servers/plain_model.py"}


COMMANDS = [
    "classify --family {family} text",
    "serve --family {family} --port 1",
    "convert {plain} {out}",
    "train distill --teacher {plain} --texts {texts} --out {out}",
    "train finetune --start {plain} --data {texts} --out {out} --num-instances 1",
    "export triton {family} {out}",
    "evaluate {family} --data {texts}",
    "plan --family {family} --rate 5:1",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_it_in_one_line(family, plain, command, tmp_path, capsys):
    for file in (family / "weights" / "config.json", plain / "config.json"):
        edit(file, CONFIGS["labels"][0])
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + 20 * "a good film,positive\nbad,negative\n")
    places = {"family": family, "plain": plain, "texts": texts, "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as ended:
        app([part.format(**places) for part in command.split()])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert "num_labels" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "out").exists()


IN_BOUNDS = """
import json, resource, sys
from pathlib import Path
from muxserve.errors import FamilyError
from muxserve.models.convert import convert
from muxserve.models.family import Family

folder, plain, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
Family.load(folder)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file, content in cases:
    kept = (folder / file).read_text()
    changed = json.loads(kept)
    changed.update(content)
    (folder / file).write_text(json.dumps(changed))
    try:
        Family.load(folder)
    except FamilyError as error:
        print(error)
    (folder / file).write_text(kept)
    if file.endswith("config.json"):
        config = plain / "config.json"
        kept = config.read_text()
        config.write_text(json.dumps({**json.loads(kept), **content}))
        try:
            convert(str(plain), folder / "out")
        except FamilyError as error:
            print(error)
        config.write_text(kept)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_what_is_refused_takes_no_memory(family, plain):
    cases = [
        ("weights/config.json", {"num_labels": 10**9, "id2label": None}),
        ("weights/config.json", {"num_hidden_layers": 10**5}),
        ("weights/config.json", {"vocab_size": 10**8}),
        ("weights/config.json", {"hidden_size": 2**20}),
        ("tokenizer.json", {"normalizer": sequence(*[DOUBLING] * 40)}),
    ]
    ended = subprocess.run(
        [sys.executable, "-c", IN_BOUNDS, str(family), str(plain), json.dumps(cases)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    *errors, grown_mb = ended.stdout.splitlines()
    assert len(errors) == 2 * len(cases) - 1
    assert int(grown_mb) < 200


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 3, 2**20, 10**9, 2**31, 2**62, 10**400, -(10**9)]),
    st.floats(),
    st.sampled_from(["", "12", "a\nb", "x" * 5000, "../..", "/etc/passwd", "nothing", "float16"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["0", "1", "type", "id", "content"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON can be changed: the paths to its values, of long ones the first."""
    found = [at] if at else []
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(inner)[:40]:
        nests = isinstance(value, dict | list)
        found += places(value, (*at, key)) if nests else [(*at, key)]
    return found


def mutated(content: Any, data: st.DataObject) -> Any:
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(places(content) or [("new",)]))
        inner = content
        for key in where[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[where[-1]] = data.draw(VALUES)
        elif isinstance(inner, dict):
            inner.pop(where[-1], None)
    return content


@pytest.mark.parametrize("name", ["weights/config.json", "tokenizer.json", "family.json"])
def test_any_other_json_loads_or_is_refused_in_one_line(tiny_family, tmp_path, name):
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    edit(folder / "family.json", lambda content: content.pop("checksums"))
    kept = json.loads((folder / name).read_text())

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        (folder / name).write_text(json.dumps(mutated(kept, data)))
        try:
            TextEncoder.of_family(Family.load(folder))
        except FamilyError as error:
            told(error)

    check()
