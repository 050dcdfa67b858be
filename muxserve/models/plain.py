"""A checkpoint of ``transformers`` in, its classifier of texts or tokens out, in eval mode.

``transformers`` matches the names of tensors, so old checkpoints mean the same here as there.
Tensors that the model does not use are dropped and named; nothing is ever drawn at random.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from muxserve.errors import FamilyError, first_line
from muxserve.models.checkpoint import CONFIG_FILE, empty_model, model_config
from muxserve.models.claims import label_fault
from muxserve.models.family import AUTO_MODELS, Task
from muxserve.models.source import State, read_state

#: Fields that are read here: ``transformers`` takes the length of ``id2label`` as the number of
#: labels.
_OWN_FIELDS = ("id2label", "label2id", "num_labels")
#: Labels if neither the config nor the weights tell, as in ``transformers``.
_DEFAULT_LABELS = 2


@dataclass(frozen=True)
class Plain:
    """A classifier as it was read.

    Attributes:
        model: in eval mode, float32.
        dropped: names of tensors that the model does not use, sorted.
    """

    model: PreTrainedModel
    dropped: tuple[str, ...]


def task_of(architecture: str) -> Task | None:
    """The task of a model class, by its name; None if families have no such task."""
    endings: dict[str, Task] = {
        "ForSequenceClassification": "sequence-classification",
        "ForTokenClassification": "token-classification",
    }
    return next((task for end, task in endings.items() if architecture.endswith(end)), None)


def plain_classifier(folder: Path, config: dict[str, Any]) -> PreTrainedModel:
    """The model of ``read_plain`` alone."""
    return read_plain(folder, config).model


def read_plain(folder: Path, config: dict[str, Any]) -> Plain:
    """The ``transformers`` classifier of texts or tokens in a folder.

    Args:
        folder: with weights.
        config: its ``config.json``, as ``read_config`` has checked it.

    Raises:
        FamilyError: for another architecture, or tensors that do not fit its config.
    """
    file = folder / CONFIG_FILE
    architecture = (config.get("architectures") or ["(none)"])[0]
    task = task_of(architecture)
    if task is None:
        raise FamilyError(
            f"{file}: field architectures: {architecture!r} is neither an official MUX-PLM nor a "
            "classifier of texts or tokens",
            field="architectures",
        )
    named = _named_labels(config, file)
    count, certain = _label_count(config, named)
    state = read_state(folder)
    rows = max((tensor.shape[0] for tensor in state.values() if tensor.dim()), default=0)
    if count > rows:
        field = "id2label" if named else "num_labels"
        raise FamilyError(
            f"{file}: field {field}: it speaks of {count:,} labels, but no tensor of the weights "
            f"has more than {rows:,} rows",
            field=field,
        )
    model, report = _load(file, config, count, task, state)
    if not certain and (own := _rows_of_head(report["mismatched_keys"], count)) is not None:
        count = own
        model, report = _load(file, config, count, task, state)
    _check(report, folder)
    if named and max(named) >= count:
        raise FamilyError(
            f"{file}: field id2label: it names label {max(named)}, the weights have {count} labels",
            field="id2label",
        )
    names = {index: named.get(index, f"LABEL_{index}") for index in range(count)}
    # Decoders keep a cache for a next token, which a classifier never asks for.
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False
    model.config.id2label = names
    model.config.label2id = {name: index for index, name in names.items()}
    return Plain(model.eval(), _dropped(model, state, report["unexpected_keys"]))


def label_names(model: PreTrainedModel, labels: Sequence[str] | None, folder: Path) -> list[str]:
    """Names in the order of the logits: those given, or the checkpoint's own.

    Raises:
        FamilyError: if there are neither, or the given ones do not fit.
    """
    count = int(model.config.num_labels or 0)
    names: dict[Any, str] = model.config.id2label or {}
    own = [names[index] for index in range(count)]
    if labels is None:
        if own == [f"LABEL_{index}" for index in range(count)] and count > 1:
            raise FamilyError(
                f"{folder}: its {count} labels have no names; give them with --labels, in the "
                "order of the logits",
                field="labels",
            )
        if fault := label_fault(own):
            raise FamilyError(f"{folder}: id2label: {fault}; give --labels", field="labels")
        return own
    if len(labels) != count or len(set(labels)) != count or not all(labels):
        raise FamilyError(
            f"labels: expected {count} different names, got {', '.join(labels)}", field="labels"
        )
    return list(labels)


def problem_type(model: PreTrainedModel) -> Any:
    """How logits become scores, as the pipelines of ``transformers`` read the config."""
    if task_of(type(model).__name__) == "token-classification":
        return "single_label_classification"  # pipelines ignore what the config says
    own = model.config.problem_type
    if own == "regression":
        return own
    # A sigmoid for a single label, whose softmax would always be 1.
    if own == "multi_label_classification" or model.config.num_labels == 1:
        return "multi_label_classification"
    return "single_label_classification"


def _named_labels(config: dict[str, Any], file: Path) -> dict[int, str]:
    """``id2label`` by number, which may have gaps."""
    named = {int(index): name for index, name in (config.get("id2label") or {}).items()}
    if not all(isinstance(name, str) for name in named.values()):
        raise FamilyError(
            f"{file}: field id2label: expected the names of labels by their numbers",
            field="id2label",
        )
    return named


def _label_count(config: dict[str, Any], named: dict[int, str]) -> tuple[int, bool]:
    """How many labels the config claims, and whether that is certain."""
    stated: int | None = config.get("num_labels")
    if named:
        whole = sorted(named) == list(range(len(named)))
        return (len(named), True) if whole else (stated or max(named) + 1, False)
    return stated or _DEFAULT_LABELS, stated is not None


def _load(
    file: Path, config: dict[str, Any], count: int, task: Task, state: State
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model with these tensors, and the report of ``transformers`` on their names and shapes."""
    kept = {key: value for key, value in config.items() if key not in _OWN_FIELDS}
    with _quiet():
        made = model_config({**kept, "num_labels": count}, file.parent)
        empty = empty_model(AUTO_MODELS[task], made, file.parent)
        try:
            loader: Any = type(empty)
            model, report = loader.from_pretrained(
                None,
                config=made,
                state_dict=dict(state),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are refused by name in _check
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:
            raise FamilyError(f"{file.parent}: {first_line(error)}") from None
    return model, report


def _rows_of_head(
    mismatched: set[tuple[str, Sequence[int], Sequence[int]]], count: int
) -> int | None:
    """The number of labels in the weights, if nothing else fails to fit."""
    rows = {
        theirs[0] if len(theirs) == len(ours) and theirs[1:] == ours[1:] else None
        for _, theirs, ours in mismatched
        if ours[0] == count
    }
    return rows.pop() if len(rows) == 1 else None


def _check(report: dict[str, Any], folder: Path) -> None:
    if report["mismatched_keys"]:
        name, theirs, ours = min(report["mismatched_keys"])
        raise FamilyError(
            f"{folder}: {name} has shape {list(theirs)}, config.json asks for {list(ours)}",
            field=name,
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise FamilyError(f"{folder}: the checkpoint lacks {', '.join(missing[:5])}")
    if report["error_msgs"]:
        raise FamilyError(f"{folder}: {report['error_msgs'][0]}")


def _dropped(model: PreTrainedModel, state: State, unexpected: set[str]) -> tuple[str, ...]:
    """Unused tensors, including those that ``transformers`` skips silently."""
    silent = [
        *(model._keys_to_ignore_on_load_unexpected or ()),
        r"(^|\.)position_ids$",
        r"rotary_emb\.inv_freq$",
    ]
    own = model.state_dict()
    passed_over = {
        key for key in state if key not in own and any(re.search(one, key) for one in silent)
    }
    return tuple(sorted(unexpected | passed_over))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ``transformers`` from printing: ``Converted`` tells what it would print."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
