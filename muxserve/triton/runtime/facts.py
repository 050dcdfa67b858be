"""What an exported model knows about its family, and its tuning parameters.

The export writes the facts to ``mux.json``. The tuning is under ``parameters`` in ``config.pbtxt``,
where the operator of Triton can change it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FACTS_FILE = "mux.json"


@dataclass(frozen=True)
class Facts:
    """The facts of one exported model.

    Attributes:
        labels: names, in the order of the logits.
        problem_type: decides how logits become scores.
        of_tokens: whether every token gets a label, rather than the text.
        max_length: maximum tokens of a text.
        truncation_side: which side of a long text is cut, "left" or "right".
        padded_length: the length that every text is padded to, or None for the batch's longest.
        pad_id: token id of padding.
        vocab_size: every id is below it.
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
        """Read the facts from a model's version folder."""
        return cls(**json.loads((folder / FACTS_FILE).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write the facts into a model's version folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Tuning:
    """The settings of a running model.

    Attributes:
        latency_target_ms: time to drain what waits; a wider N is taken to meet it.
        max_groups: maximum groups of one forward.
        max_waiting_texts: texts that one execution answers; more are refused.
        warm_up_s: seconds after which the measuring of forward times at start ends early.
        threads: CPU threads of a forward; 0 for every core of the process.
    """

    latency_target_ms: float = 50.0
    max_groups: int = 32
    max_waiting_texts: int = 512
    warm_up_s: float = 2.0
    threads: int = 0

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, str]) -> "Tuning":
        """The settings among a model's parameters; other parameters are ignored.

        Raises:
            ValueError: a value is invalid; the message names the parameter.
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
