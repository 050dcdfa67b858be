"""A file of API keys: what it may say, what is told of it, and that it is read again."""

import hashlib
import json
import logging
import os
import re
import time
from io import StringIO
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from muxserve.errors import InvalidInput
from muxserve.serving.access import keys as keys_module
from muxserve.serving.access.keys import KeyEntry, KeyLimits, Keyring, read_keys
from muxserve.serving.config import LimitsConfig
from muxserve.serving.ray.replica import log_through_ray

SECRET = "c0ffee" * 10
OTHER = "decade" * 10
LIMITS = LimitsConfig(max_texts_per_request=8)
BOUND_S = 20
SECURITY_PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def written(folder: Path, content: object) -> Path:
    """A file of keys that only its owner may read; what is no text is written as YAML."""
    path = folder / "keys.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    path.chmod(0o600)
    return path


def entry(name: str, key: str, **more: object) -> dict[str, object]:
    return {"name": name, "key": key, **more}


def test_a_key_stands_for_its_caller(tmp_path):
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    limits = {"max_texts_per_request": 4, "max_waiting_texts": 7, "max_body_bytes": 10**9}
    more = {"share": 2, "max_num_instances": 1, "isolation": False, "limits": limits}
    file = written(
        tmp_path, {"keys": [entry("web", SECRET), {"name": "batch", "sha256": digest, **more}]}
    )
    keys = read_keys(file, LIMITS)
    web, batch = keys.caller(SECRET.encode()), keys.caller(OTHER.encode())
    assert web is not None
    assert batch is not None
    assert (web.name, web.share, web.max_num_instances) == ("key:web", 1.0, None)
    assert web.isolated
    assert web.limits is None
    assert (batch.name, batch.share, batch.max_num_instances) == ("key:batch", 2.0, 1)
    assert not batch.isolated
    assert batch.max_waiting_texts == 7
    assert batch.limits is not None
    assert batch.limits.max_texts_per_request == 4
    # A key's limit narrows the server's and never widens it.
    assert batch.limits.max_body_bytes == LIMITS.max_body_bytes
    for wrong in (b"", SECRET[:-1].encode(), SECRET.upper().encode(), SECRET.encode() + b"0"):
        assert keys.caller(wrong) is None
    assert keys.caller(digest.encode()) is None
    assert keys.caller(b"x" * 100_000) is None


def test_json_is_read_too(tmp_path):
    keys = read_keys(written(tmp_path, json.dumps({"keys": [entry("web", SECRET)]})), LIMITS)
    assert keys.caller(SECRET.encode()) is not None


def test_an_empty_list_lets_nobody_in(tmp_path):
    assert len(read_keys(written(tmp_path, {"keys": []}), LIMITS)) == 0


#: What stands in the file, what the error says.
BROKEN: dict[str, tuple[object, str]] = {
    "nothing": ("", "valid dictionary or instance of KeysFile"),
    "no-list": ({"keys": {SECRET: "web"}}, "keys: Input should be a valid list"),
    "key-as-field": ({"keys": [{SECRET: "web"}]}, r"keys\[0\]"),
    "unknown-field": (
        {"keys": [entry("web", SECRET, **{OTHER: 1})]},
        r"keys\[0\]: a field that does not exist; there are name, key,",
    ),
    "unknown-limit": (
        {"keys": [entry("web", SECRET, limits={"max_text": 1})]},
        r"keys\[0\].limits: a field that does not exist; there are max_texts_per_request,",
    ),
    "both": ({"keys": [entry("web", SECRET, sha256="0" * 64)]}, r"keys\[0\]: give key, or sha256"),
    "neither": ({"keys": [{"name": "web"}]}, r"keys\[0\]: give key, or sha256"),
    "short": ({"keys": [entry("web", SECRET[:8])]}, "openssl rand -hex 32"),
    "blank": ({"keys": [entry("web", SECRET + " x")]}, "no blanks"),
    "not-ascii": ({"keys": [entry("web", SECRET + "é")]}, "ASCII only"),
    "number": (f"keys: [{{name: web, key: {'1' * 40}}}]", "put it in quotes"),
    "digest": ({"keys": [{"name": "web", "sha256": SECRET + "00"}]}, "64 hexadecimal digits"),
    "name": ({"keys": [entry("a:b", SECRET)]}, r"keys\[0\].name"),
    "share": ({"keys": [entry("web", SECRET, share=0)]}, r"keys\[0\].share"),
    "cap": ({"keys": [entry("web", SECRET, max_num_instances=1)]}, "the narrowest N here is 2"),
    "same-name": ({"keys": [entry("web", SECRET), entry("web", OTHER)]}, r"keys\[1\].name"),
    "same-key": ({"keys": [entry("a", SECRET), entry("b", SECRET)]}, r"keys\[1\]: the same key"),
    "no-yaml": (f"keys:\n- name: web\n  key: '{SECRET}\n", "line 4"),
    "alias": (f"keys: *{SECRET}", "line 1"),
    "deep": ("[" * 700, "neither YAML nor JSON"),
    "date": (f"keys: 2001-99-99\n# {SECRET}", "neither YAML nor JSON"),
    "code": (f"keys: !!python/object/apply:os.system ['{SECRET}']", "line 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_one_line_that_names_the_place_and_no_secret(tmp_path, name):
    content, expected = BROKEN[name]
    file = written(tmp_path, content)
    with pytest.raises(InvalidInput, match=expected) as caught:
        read_keys(file, LIMITS, narrowest=2)
    told = str(caught.value)
    assert told.startswith(str(file))
    assert "\n" not in told
    assert SECRET[:8] not in told
    assert OTHER[:8] not in told
    assert caught.value.field == "security.keys_file"
    # Nothing is chained to it that a traceback would show.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_that_is_not_utf_8_or_not_there_is_told(tmp_path):
    file = written(tmp_path, "")
    file.write_bytes(b"keys: \xff")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_keys(file, LIMITS)
    with pytest.raises(InvalidInput, match="No such file"):
        read_keys(tmp_path / "absent", LIMITS)
    with pytest.raises(InvalidInput, match="directory"):
        read_keys(tmp_path, LIMITS)


def test_no_repr_shows_a_key(tmp_path):
    given = KeyEntry.model_validate(entry("web", SECRET))
    ring = Keyring(str(written(tmp_path, {"keys": [entry("web", SECRET)]})), LIMITS)
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    with pytest.raises(ValidationError) as refused:
        KeyEntry.model_validate(entry("web", SECRET[:10]))
    for one in (given, ring, ring.caller(SECRET.encode()), vars(ring), refused.value):
        told = repr(one) + str(one)
        assert SECRET[:10] not in told
        assert digest[:16] not in told


def looked(ring: Keyring) -> None:
    """Two looks: what is being written is left until they agree."""
    ring.look()
    ring.look()


def known(ring: Keyring, key: str) -> bool:
    return ring.caller(key.encode()) is not None


def test_new_contents_are_taken_over(tmp_path):
    file = written(tmp_path, {"keys": [entry("web", SECRET)]})
    ring = Keyring(str(file), LIMITS)
    dates = file.stat()
    written(tmp_path, {"keys": [entry("web", OTHER)]})
    # Size and dates as before: only the contents tell.
    os.utime(file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert file.stat().st_size == dates.st_size
    looked(ring)
    assert (known(ring, SECRET), known(ring, OTHER)) == (False, True)


def test_a_secret_of_kubernetes_is_taken_over_when_its_link_moves(tmp_path):
    """As the kubelet mounts it: file -> ..data/file, ..data -> a folder of that version."""
    for version, key in (("..1", SECRET), ("..2", OTHER)):
        (tmp_path / version).mkdir()
        written(tmp_path / version, {"keys": [entry("web", key)]})
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    ring = Keyring(str(tmp_path / "keys.yaml"), LIMITS)
    assert known(ring, SECRET)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    looked(ring)
    assert (known(ring, SECRET), known(ring, OTHER)) == (False, True)


@pytest.mark.parametrize("broken", ["", "keys: [", None])
def test_a_broken_file_keeps_the_old_keys_and_is_told_once(tmp_path, caplog, broken):
    file = written(tmp_path, {"keys": [entry("web", SECRET)]})
    ring = Keyring(str(file), LIMITS)
    with caplog.at_level(logging.WARNING, keys_module.__name__):
        if broken is None:
            file.unlink()
        else:
            written(tmp_path, broken)
        for _ in range(5):
            looked(ring)
            assert known(ring, SECRET)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the keys that were read before stay" in record.message
    assert str(file) in record.message
    assert "\n" not in record.message
    assert record.exc_info is None
    # And a whole one is taken over again.
    written(tmp_path, {"keys": [entry("web", OTHER)]})
    looked(ring)
    assert (known(ring, SECRET), known(ring, OTHER)) == (False, True)


def test_a_file_that_is_being_written_is_left_until_it_is_whole(tmp_path):
    file = written(tmp_path, {"keys": [entry("a", SECRET), entry("b", OTHER)]})
    ring = Keyring(str(file), LIMITS)
    whole = file.read_text()
    file.write_text(whole[: whole.index("- key", whole.index("- key") + 1)])
    assert len(read_keys(file, LIMITS)) == 1  # half of it is a file of its own
    ring.look()
    assert known(ring, OTHER)
    file.write_text(whole)
    looked(ring)
    assert known(ring, OTHER)


def test_its_thread_takes_a_change_over(tmp_path):
    ring = Keyring(str(written(tmp_path, {"keys": [entry("web", SECRET)]})), LIMITS)
    ring.start()
    try:
        written(tmp_path, {"keys": [entry("web", OTHER)]})
        end_s = time.monotonic() + BOUND_S
        while not known(ring, OTHER):
            assert time.monotonic() < end_s
            time.sleep(0.02)
        assert not known(ring, SECRET)
    finally:
        ring.close()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 0), (0o604, 1), (0o602, 1)])
def test_a_file_that_everybody_may_read_or_write_is_warned_of(tmp_path, caplog, mode, warned):
    file = written(tmp_path, {"keys": [entry("web", SECRET)]})
    file.chmod(mode)
    with caplog.at_level(logging.WARNING, keys_module.__name__):
        ring = Keyring(str(file), LIMITS)
        looked(ring)
        looked(ring)
    assert len(caplog.records) == warned
    assert all("chmod" in record.message for record in caplog.records)


def test_a_warning_is_not_held_back_by_ray_s_buffer(monkeypatch):
    """As Ray's log is where it is tuned for throughput: a thousand lines, until an error."""
    told = StringIO()
    buffered = MemoryHandler(1000, logging.ERROR, logging.StreamHandler(told))
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [buffered])
    monkeypatch.setattr(logging.getLogger("muxserve"), "parent", None)
    log_through_ray()
    logging.getLogger(keys_module.__name__).warning("the keys that were read before stay")
    assert told.getvalue() == "the keys that were read before stay\n"


def test_of_many_keys_each_is_found(tmp_path):
    many = [entry(f"key-{index}", f"{index:064x}") for index in range(500)]
    keys = read_keys(written(tmp_path, json.dumps({"keys": many})), LIMITS)
    for index in (0, 250, 499):
        caller = keys.caller(f"{index:064x}".encode())
        assert caller is not None
        assert caller.key == f"key-{index}"
    assert keys.caller(f"{500:064x}".encode()) is None


def test_the_documented_file_is_one(tmp_path):
    (example,) = re.findall(r"```yaml\n(keys:.*?)```", SECURITY_PAGE, flags=re.DOTALL)
    keys = read_keys(written(tmp_path, example), LIMITS)
    assert len(keys) == len(yaml.safe_load(example)["keys"])


def test_every_field_of_the_file_is_documented():
    for name in set(KeyEntry.model_fields) - {"limits"}:
        assert f"`{name}`" in SECURITY_PAGE, name
    for name in KeyLimits.model_fields:
        assert f"`limits.{name}`" in SECURITY_PAGE or f"`.{name}`" in SECURITY_PAGE, name
