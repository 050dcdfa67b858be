"""The Open Inference Protocol (v2) without its transports: texts in, arrays of predictions out.

A family is one model, named after it and, as its text front in Triton is, ``<family>_text``: a
client of either server asks the other. https://github.com/kserve/open-inference-protocol, with
Triton's binary data and classification extensions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muxserve.engine.scores import label_scores
from muxserve.errors import InvalidInput, TooManyTexts
from muxserve.models.family import FamilySpec
from muxserve.models.files import is_whole
from muxserve.serving.access.callers import Caller
from muxserve.serving.errors import NotFound, shown
from muxserve.serving.protocols.answers import entries
from muxserve.serving.service import Answered, TextService

VERSION = "1"
#: Inputs, outputs or parameters of one request; no family has as many.
MOST_TENSORS = 64
#: More classes than any family has labels.
_MOST_CLASSES = 1_000_000
#: Microseconds of a timeout, a signed number of 64 bits as over gRPC.
_MOST_TIMEOUT = 2**63 - 1
INPUT = "text"
#: Parameters of a request that the protocol or Triton's clients define and that mean nothing here.
_OTHERS = {
    *("sequence_id", "sequence_start", "sequence_end", "priority"),
    *("binary_data_output", "headers", "triton_enable_empty_final_response"),
}
#: Those that mean something: which values are right, and how an error says so.
_OURS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_num_instances": (
        lambda value: is_whole(value) and 1 <= value <= 1024,
        "a whole number from 1 to 1024",
    ),
    "isolation_key": (
        lambda value: isinstance(value, str) and 0 < len(value) <= 256,
        "a text of at most 256 characters",
    ),
    "truncate": (lambda value: isinstance(value, bool), "true or false"),
    "timeout": (
        lambda value: is_whole(value) and 0 <= value <= _MOST_TIMEOUT,
        "microseconds, a whole number of 64 bits",
    ),
}


@dataclass(frozen=True, slots=True)
class Array:
    """An input or output: its name, the protocol's name of its type, its shape with -1 for any."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


_OF_WORDS = (
    Array("words", "BYTES", (-1, -1)),
    Array("labels", "BYTES", (-1, -1)),
    Array("word_scores", "FP32", (-1, -1)),
)


def _of_texts(labels: int) -> tuple[Array, Array]:
    return Array("logits", "FP32", (-1, labels)), Array("scores", "FP32", (-1, labels))


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that was asked for.

    Attributes:
        name: of the array.
        classes: give so many best classes as ``score:index:label`` instead; 0 for the array itself.
        binary: as bytes after the JSON; REST only.
    """

    name: str
    classes: int = 0
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Inference:
    """A request, read."""

    texts: list[str]
    parameters: Mapping[str, Any]
    outputs: Sequence[Wanted] = field(default_factory=tuple)


class Model:
    """The one model of a service."""

    def __init__(self, service: TextService) -> None:
        self._service = service
        self._spec: FamilySpec = service.spec
        self.name = self._spec.name
        self.inputs = [Array(INPUT, "BYTES", (-1, 1))]
        self.outputs = [
            *(_OF_WORDS if self._spec.of_tokens else _of_texts(len(self._spec.labels))),
            Array("num_instances", "INT32", (-1, 1)),
            Array("truncated", "BOOL", (-1, 1)),
        ]

    def check(self, name: str, version: str = "") -> None:
        """Raise NotFound where a request names another model or version."""
        if name not in (self.name, f"{self.name}_text"):
            raise NotFound(f"there is no model {shown(name)} here; this server has {self.name!r}")
        if version not in ("", VERSION):
            raise NotFound(f"the model {name} has no version {shown(version)}, only {VERSION!r}")

    def metadata(self) -> dict[str, Any]:
        """What a client may ask of the model."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "muxserve",
            "inputs": [one.as_json() for one in self.inputs],
            "outputs": [one.as_json() for one in self.outputs],
        }

    async def ready(self) -> bool:
        """Whether it would answer now."""
        return await self._service.backend.ready()

    async def infer(
        self,
        asked: Inference,
        caller: Caller,
        timeout_s: float | None = None,
        since_s: float | None = None,
    ) -> dict[str, Any]:
        """The arrays that were asked for, all of them where none was named; in the model's order.

        Args:
            asked: the request.
            caller: who asks.
            timeout_s: the transport's deadline in seconds from now; the parameter's is in
                microseconds, and the nearer one holds.
            since_s: as of ``TextService.classify``.

        Raises:
            MuxserveError: as ``TextService.classify``.
        """
        options = _options(asked.parameters)
        within_s = [one for one in (timeout_s, options.pop("timeout_s", None)) if one is not None]
        wanted = self._wanted(asked.outputs)
        answered = await self._service.classify(
            asked.texts,
            **options,
            timeout_s=min(within_s, default=None),
            since_s=since_s,
            caller=caller,
        )
        arrays = self._arrays(answered)
        return {
            one.name: self._classes(arrays[one.name], one.classes)
            if one.classes
            else arrays[one.name]
            for one in wanted
        }

    def _wanted(self, outputs: Sequence[Wanted]) -> list[Wanted]:
        known = [one.name for one in self.outputs]
        for one in outputs:
            if one.name not in known:
                raise InvalidInput(
                    f"there is no output {shown(one.name)}; the model gives {', '.join(known)}",
                    field="outputs",
                )
            if one.classes and one.name != "scores":
                raise InvalidInput(
                    f"classification is of the output 'scores', got it for {shown(one.name)}",
                    field="outputs",
                )
        return list(outputs) or [Wanted(name) for name in known]

    def _arrays(self, answered: Answered) -> dict[str, np.ndarray]:
        rows = zip(answered.predictions, answered.tokens, strict=True)
        served = [([one.num_instances], [tokens.truncated]) for one, tokens in rows]
        common = {
            "num_instances": np.array([n for n, _ in served], np.int32),
            "truncated": np.array([cut for _, cut in served], np.bool_),
        }
        if self._spec.of_tokens:
            return {**self._words(answered), **common}
        order = {label: index for index, label in enumerate(self._spec.labels)}
        scores = np.zeros((len(served), len(order)), np.float32)
        for row, prediction in enumerate(answered.predictions):
            for entry in label_scores(prediction.logits, self._spec):
                scores[row, order[entry.label]] = entry.score
        logits = np.stack([one.logits for one in answered.predictions]).astype(np.float32)
        return {"logits": logits, "scores": scores, **common}

    def _words(self, answered: Answered) -> dict[str, np.ndarray]:
        """Arrays of words, filled up with empty ones; a text without words has one of those."""
        found = entries(answered, self._spec)
        most = max(1, *(len(one) for one in found))
        words = np.full((len(found), most), b"", dtype=object)
        labels = words.copy()
        scores = np.zeros(words.shape, np.float32)
        for row, one in enumerate(found):
            for place, entry in enumerate(one):
                words[row, place] = entry["word"].encode()
                labels[row, place] = entry["label"].encode()
                scores[row, place] = entry["score"]
        return {"words": words, "labels": labels, "word_scores": scores}

    def _classes(self, scores: np.ndarray, count: int) -> np.ndarray:
        """Triton's classification extension: [texts, classes] of ``score:index:label``."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.array(
            [
                [f"{row[index]:f}:{index}:{self._spec.labels[index]}".encode() for index in indices]
                for row, indices in zip(scores, best.tolist(), strict=True)
            ],
            dtype=object,
        )


def read_texts(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> list[str]:
    """The texts of the one input.

    Args:
        name, datatype, shape: as the request says.
        values: its elements, bytes or texts.

    Raises:
        InvalidInput: naming what is wrong.
    """
    if name != INPUT:
        raise InvalidInput(f"expected the input {INPUT!r}, got {shown(name)}", field="inputs")
    if datatype != "BYTES":
        raise InvalidInput(
            f"{INPUT}: expected datatype BYTES, got {shown(datatype, quoted=False)}", field="inputs"
        )
    sizes = list(shape[:3])
    told = f"[{', '.join(map(shown, sizes))}]"
    if len(sizes) not in (1, 2) or (len(sizes) == 2 and sizes[1] != 1) or sizes[0] < 1:
        raise InvalidInput(f"{INPUT}: expected shape [texts, 1], got {told}", field="inputs")
    if len(values) != sizes[0]:
        raise InvalidInput(
            f"{INPUT}: shape {told} is {shown(sizes[0])} texts, the data has {len(values)}",
            field="inputs",
        )
    texts = []
    for index, value in enumerate(values):
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            raise InvalidInput(f"{INPUT}[{index}] is not UTF-8", field="inputs") from None
        if not isinstance(text, str):
            raise InvalidInput(f"{INPUT}[{index}]: expected a text", field="inputs")
        texts.append(text)
    return texts


def read_byte_strings(raw: bytes, most: int) -> list[bytes]:
    """Elements of a BYTES array: each after its length in 4 little-endian bytes.

    Raises:
        InvalidInput: it ends within an element.
        TooManyTexts: there are more than ``most`` elements; the rest is not looked at.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if len(elements) == most:
            raise TooManyTexts(
                f"more texts in one request than allowed, at most {most}; send them in several",
                field="inputs",
            )
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if at > len(raw):
            raise InvalidInput(f"{INPUT}: the data ends within an element", field="inputs")
        elements.append(raw[start:at])
    return elements


def read_classes(value: object) -> int:
    """The parameter ``classification`` of an output.

    Raises:
        InvalidInput: it is not a count.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_CLASSES:
        raise InvalidInput(
            f"classification: expected a count of classes, got {shown(value)}", field="outputs"
        )
    return value


def as_bytes(array: np.ndarray) -> bytes:
    """An array's elements as the protocol puts them on the wire."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(one).to_bytes(4, "little") + one for one in array.ravel().tolist())


def datatype(array: np.ndarray) -> str:
    """The protocol's name of an array's type."""
    names = {"float32": "FP32", "int32": "INT32", "bool": "BOOL", "object": "BYTES"}
    return names[array.dtype.name]


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``TextService.classify``.

    Raises:
        InvalidInput: for an unknown parameter, or a value that cannot be.
    """
    if len(parameters) > MOST_TENSORS:
        raise InvalidInput(
            f"at most {MOST_TENSORS} parameters, got {len(parameters)}", field="parameters"
        )
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in _OTHERS:
            continue
        if name not in _OURS:
            raise InvalidInput(
                f"unknown parameter {shown(name)}; there are {', '.join(_OURS)}", field="parameters"
            )
        is_right, expected = _OURS[name]
        if not is_right(value):
            raise InvalidInput(
                f"parameter {name}: expected {expected}, got {shown(value)}", field="parameters"
            )
        options[name] = value
    if microseconds := options.pop("timeout", 0):
        options["timeout_s"] = microseconds / 1e6
    return options
