"""A file of API keys in, the caller that a key stands for out; read again when the file changes.

No key ever appears in a log, an error or a ``repr``; only its digest is kept.
"""

import hashlib
import hmac
import logging
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretBytes,
    ValidationError,
    field_validator,
    model_validator,
)

from muxserve.errors import InvalidInput
from muxserve.models.family import FamilySpec
from muxserve.serving.access.callers import Caller
from muxserve.serving.config import LimitsConfig, ServeConfig
from muxserve.serving.errors import dotted

log = logging.getLogger(__name__)

#: Seconds between looks at the file.
LOOK_EVERY_S = 0.5
_FIELD = "security.keys_file"
_MOST_FILE_BYTES = 4 * 1024 * 1024
_FEWEST_CHARACTERS, _MOST_CHARACTERS = 16, 512
_OTHERS_MAY = stat.S_IROTH | stat.S_IWOTH


class KeyLimits(BaseModel):
    """What a key may ask for, where that is less than the server lets everybody."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    max_texts_per_request: Annotated[int, Field(ge=1)] | None = None
    max_characters_per_text: Annotated[int, Field(ge=1)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1024)] | None = None
    request_timeout_s: Annotated[float, Field(gt=0)] | None = None
    max_waiting_texts: Annotated[int, Field(ge=1)] | None = None


class KeyEntry(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    key: SecretBytes | None = None
    sha256: SecretBytes | None = None
    isolation: bool = True
    share: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)
    max_num_instances: Annotated[int, Field(ge=1, le=1024)] | None = None
    limits: KeyLimits = KeyLimits()

    @field_validator("key", "sha256", mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        if given is not None and not isinstance(given, str):
            raise ValueError("expected a text; put it in quotes")
        return None if given is None else given.encode()

    @field_validator("key")
    @classmethod
    def _can_be_sent(cls, given: SecretBytes | None) -> SecretBytes | None:
        if given is not None:
            key = given.get_secret_value()
            if not _FEWEST_CHARACTERS <= len(key) <= _MOST_CHARACTERS:
                raise ValueError(
                    f"a key has {_FEWEST_CHARACTERS} to {_MOST_CHARACTERS} characters; "
                    "make one with: openssl rand -hex 32"
                )
            if not all(33 <= byte < 127 for byte in key):
                raise ValueError("a key has letters, digits and signs of ASCII only, no blanks")
        return given

    @field_validator("sha256")
    @classmethod
    def _is_digest(cls, given: SecretBytes | None) -> SecretBytes | None:
        if given is not None:
            digits = given.get_secret_value().lower()
            if len(digits) != 64 or not all(digit in b"0123456789abcdef" for digit in digits):
                raise ValueError("expected the 64 hexadecimal digits of the key's SHA-256")
        return given

    @model_validator(mode="after")
    def _one_of_both(self) -> "KeyEntry":
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give key, or sha256, one of them")
        return self

    def digest(self) -> bytes:
        """SHA-256 of the key."""
        if self.key is not None:
            return hashlib.sha256(self.key.get_secret_value()).digest()
        assert self.sha256 is not None, "one of both is there"
        return bytes.fromhex(self.sha256.get_secret_value().decode())

    def caller(self, server: LimitsConfig) -> Caller:
        """Who asks with this key, within the limits that the server has for all."""
        own = self.limits.model_dump(exclude={"max_waiting_texts"}, exclude_none=True)
        narrowed = {name: min(value, getattr(server, name)) for name, value in own.items()}
        return Caller(
            name=f"key:{self.name}",
            share=self.share,
            max_num_instances=self.max_num_instances,
            max_waiting_texts=self.limits.max_waiting_texts,
            limits=server.model_copy(update=narrowed) if narrowed else None,
            key=self.name,
            isolated=self.isolation,
        )


class KeysFile(BaseModel):
    """The whole file. An empty list lets nobody in."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    keys: list[KeyEntry] = Field(max_length=10_000)


class Keys:
    """The keys of one reading of the file; never changes."""

    def __init__(self, entries: list[KeyEntry], server: LimitsConfig) -> None:
        # Found by a digest under a secret of this process: the time of the search depends on bytes
        # that nobody outside can know or choose, and not on how many keys there are.
        self._secret = secrets.token_bytes(32)
        self._found: dict[bytes, tuple[bytes, Caller]] = {
            self._blind(digest): (digest, entry.caller(server))
            for entry in entries
            for digest in [entry.digest()]
        }

    def __len__(self) -> int:
        return len(self._found)

    def caller(self, key: bytes) -> Caller | None:
        """Who asks with this key; None where it is unknown."""
        if len(key) > _MOST_CHARACTERS:
            return None
        digest = hashlib.sha256(key).digest()
        expected, caller = self._found.get(self._blind(digest), (b"", None))
        return caller if hmac.compare_digest(expected, digest) else None

    def _blind(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=32).digest()


def narrowest(spec: FamilySpec, config: ServeConfig) -> int:
    """The narrowest N that a family is served at: no key can ask for less."""
    return config.engine.num_instances or spec.members[0].num_instances


def read_keys(path: Path, server: LimitsConfig, narrowest: int = 1) -> Keys:
    """The keys of a file.

    Args:
        path: YAML or JSON.
        server: limits that a key's can only narrow.
        narrowest: N of the family's narrowest member, below which no key's cap can be.

    Raises:
        InvalidInput: naming file and place, and nothing of what stands there.
    """
    return _parse(path, _read(path)[0], server, narrowest)


class Keyring:
    """The keys of a file as it is now; a thread looks for changes."""

    def __init__(self, path: str, server: LimitsConfig, narrowest: int = 1) -> None:
        """Read the file; ``start`` watches it.

        Raises:
            InvalidInput: as ``read_keys``.
        """
        self._path = Path(path)
        self._server, self._narrowest = server, narrowest
        content, others_may = _read(self._path)
        self._keys = _parse(self._path, content, server, narrowest)
        self._seen: object = (hashlib.sha256(content).digest(), others_may)
        self._last: object = self._seen
        self._warn_of_others(others_may)
        self._ended = threading.Event()

    def caller(self, key: bytes) -> Caller | None:
        """Who asks with this key; None where it is unknown. From any thread."""
        return self._keys.caller(key)

    def start(self) -> None:
        """Watch the file from now on."""
        threading.Thread(target=self._watch, name="muxserve-keys", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """Take over what the file says now, if that is new and can be read.

        Contents are compared, not times: a secret of Kubernetes changes by moving a link, and its
        files keep their dates. A file that is being written is left until two looks agree.
        """
        seen: object
        content, others_may, failure = b"", False, None
        try:
            content, others_may = _read(self._path)
            seen = (hashlib.sha256(content).digest(), others_may)
        except InvalidInput as error:
            failure, seen = error, error.message
        agreed, self._last = seen == self._last, seen
        if seen == self._seen or not agreed:
            return
        self._seen = seen
        try:
            if failure is not None:
                raise failure
            keys = _parse(self._path, content, self._server, self._narrowest)
        except InvalidInput as error:
            log.warning("%s; the keys that were read before stay", error.message)
            return
        self._keys = keys
        log.info("%s: read again, keys: %d", self._path, len(keys))
        self._warn_of_others(others_may)

    def _warn_of_others(self, others_may: bool) -> None:
        if others_may:
            log.warning(
                "%s: every user of this machine may read or write it; take that away "
                "(chmod o-rw, or defaultMode of a secret's volume)",
                self._path,
            )


def _read(path: Path) -> tuple[bytes, bool]:
    """What stands in the file, and whether others than its owner and group may read or write it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise _refused(path, error.strerror or "cannot be read") from None
    if len(content) > _MOST_FILE_BYTES:
        raise _refused(path, f"over {_MOST_FILE_BYTES} bytes")
    return content, bool(mode & _OTHERS_MAY)


def _parse(path: Path, content: bytes, server: LimitsConfig, narrowest: int) -> Keys:
    try:
        try:
            value = orjson.loads(content)  # many times as quick, for many keys
        except orjson.JSONDecodeError:
            value = yaml.safe_load(content.decode())
    except yaml.MarkedYAMLError as error:
        # Its message quotes the file.
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _refused(path, f"neither YAML nor JSON{line}") from None
    except Exception:
        # PyYAML raises all kinds of errors; none may pass, and no message may be shown.
        raise _refused(path, "neither YAML nor JSON in UTF-8") from None
    try:
        entries = KeysFile.model_validate(value).keys
    except ValidationError as error:
        raise _refused(path, _told(error)) from None
    for problem in _problems(entries, narrowest):
        raise _refused(path, problem)
    return Keys(entries, server)


def _problems(entries: list[KeyEntry], narrowest: int) -> Iterator[str]:
    names: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    for index, entry in enumerate(entries):
        if (same := names.setdefault(entry.name, index)) != index:
            yield f"keys[{index}].name: the same as of keys[{same}]"
        if (same := digests.setdefault(entry.digest(), index)) != index:
            yield f"keys[{index}]: the same key as keys[{same}]"
        cap = entry.max_num_instances
        if cap is not None and cap < narrowest:
            yield f"keys[{index}].max_num_instances: the narrowest N here is {narrowest}, got {cap}"


def _told(error: ValidationError) -> str:
    """The first mistake: where, and what was expected. Names of unknown fields may be secrets."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    loc, message = list(first["loc"]), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        loc.pop()
        message = "a field that does not exist; there are " + ", ".join(
            KeyLimits.model_fields
            if "limits" in loc
            else KeyEntry.model_fields
            if loc
            else KeysFile.model_fields
        )
    where = dotted(loc)
    return f"{where}: {message}" if where else message


def _refused(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"{path}: {why}", field=_FIELD)
