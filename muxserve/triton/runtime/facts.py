"""What an exported model knows of its family, and what can be tuned about it.

The first is written at export and travels in ``mux.json``; the second stands in ``config.pbtxt``
under ``parameters``, where whoever runs Triton changes it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FACTS_FILE = "mux.json"


@dataclass(frozen=True)
class Facts:
    """One exported model.

    Attributes:
        labels: names, in the order of the logits.
        problem_type: decides how logits become scores.
        of_tokens: whether every token gets a label, rather than the text.
        max_length: most tokens of a text.
        truncation_side: where a text that is too long is cut, "left" or "right".
        padded_length: the one length that every text is padded to, or None for the longest.
        pad_id: token id of padding.
        vocab_size: ids are below it.
        widths: every N that the model may run at, ascending.
    """

    labels: list[str]
    problem_type: str
    of_tokens: bool
    max_length: int
    padded_length: int | None
    pad_id: int
    vocab_size: int
    widths: list[int]
    truncation_side: str = "right"

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        """The facts of the version folder of a model."""
        return cls(**json.loads((folder / FACTS_FILE).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write them into the version folder of a model."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Tuning:
    """What can be set about a model that runs.

    Attributes:
        latency_target_ms: what waits is to be drained within this; a wider N is taken when it
            would not be.
        max_groups: most groups of one forward.
        max_waiting_texts: texts that one execution answers; what waits beyond is refused.
        warm_up_s: seconds after which measuring forward times at start gives way.
        threads: CPU threads of a forward; 0 for every core of the process.
    """

    latency_target_ms: float = 50.0
    max_groups: int = 32
    max_waiting_texts: int = 512
    warm_up_s: float = 2.0
    threads: int = 0

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, str]) -> "Tuning":
        """The settings among a model's parameters; the others are not ours.

        Raises:
            ValueError: naming the parameter.
        """
        values: dict[str, float | int] = {}
        for name, kind, least in (
            ("latency_target_ms", float, 0.001),
            ("max_groups", int, 1),
            ("max_waiting_texts", int, 1),
            ("warm_up_s", float, 0.001),
            ("threads", int, 0),
        ):
            if name not in parameters:
                continue
            try:
                values[name] = kind(parameters[name])
            except ValueError:
                raise ValueError(
                    f"parameter {name}: {parameters[name]!r} is not a number"
                ) from None
            if not values[name] >= least:
                raise ValueError(f"parameter {name}: must be at least {least}")
        return cls(**values)  # type: ignore[arg-type]
