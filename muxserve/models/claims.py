"""What ``config.json`` claims, checked as JSON before anything is built from it.

Its numbers decide how much memory a model takes, so they are compared with the weights. A size that
no tensor could have, or more layers than there are tensors, is refused by name. The rest is built
without memory and counted, see ``muxserve.models.checkpoint``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muxserve.errors import FamilyError
from muxserve.models.files import is_whole, shown
from muxserve.models.weights_file import WeightsFacts

#: Fields that are whole numbers of at least 1 wherever they appear.
_POSITIVE = re.compile(
    r"dim|d_model|embedding_size|hidden_dim|hidden_size|intermediate_size|max_position_embeddings"
    r"|n_embd|n_heads?|n_layers?|num_attention_heads|num_hidden_(demux_)?layers|num_instances"
    r"|num_labels|trained_length|vocab_size"
)
#: Fields that count parts of a network, each with tensors of its own.
_COUNTS = re.compile(r"(^|_)(layers?|blocks?|block_sizes|depths?|experts|groups?|repeats|stages)$")
#: Fields that are sides of tensors or lengths of tables.
_SIZES = re.compile(
    r"(^|_)(buckets|channels|classes|ctx|d_ff|d_head|d_kv|d_model|dims?|distance|embd|embeddings?"
    r"|features|heads?|hidden|inner|instances|labels|lengths?|positions?|rank|sizes?|widths?)$"
)
#: Fields about generation, or that are no size.
_NO_SIZES = frozenset({"max_length", "min_length", "model_max_length", "chunk_size_feed_forward"})
#: A model with so few parts or values is small whatever its weights contain.
_FEW_PARTS, _FEW_VALUES = 64, 1 << 22
_MOST_LABELS = 1 << 20
_MOST_LIST = 4096
#: Fields whose values are names, not sizes.
_NAMES = frozenset({"id2label", "label2id", "task_specific_params"})
_HIDDEN = ("hidden_size", "dim", "d_model", "n_embd")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
#: Token ids that a forward here embeds.
_EMBEDDED = ("pad_token_id", "first_token_id")
#: Fields that say how a model runs, or with whose code: the engine decides that, not a folder.
_NOT_OURS = re.compile(
    r"_.*|attn_implementation|auto_map|chunk_size_feed_forward|experts_implementation"
    r"|gradient_checkpointing|name_or_path|output_attentions|output_hidden_states|return_dict"
    r"|torchscript|use_return_dict"
)


def most_values(weights: WeightsFacts) -> int:
    """The most values that a network with these weights may have."""
    return max(_FEW_VALUES, weights.bytes)


def check_claims(config: Mapping[str, Any], weights: WeightsFacts, file: Path) -> None:
    """Check the fields that size a network, in a config and the configs in it.

    Args:
        config: the content of ``config.json``.
        weights: what the weights contain.
        file: where the config is, for the error.

    Raises:
        FamilyError: naming the field.
    """
    _check_names(config, file)
    _check_labels(config, weights, file)
    _check_fields(config, weights, file, hidden=1)
    rows = config.get("vocab_size")
    for field in _EMBEDDED:
        token = config.get(field)
        if token is None:
            continue
        if not is_whole(token) or token < 0 or (is_whole(rows) and token >= rows):
            raise _refused(file, field, f"expected a token id below vocab_size, got {shown(token)}")


def without_orders(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the fields that say how, or with whose code, a model runs."""
    return {
        key: without_orders(value) if isinstance(value, dict) and key not in _NAMES else value
        for key, value in config.items()
        if not _NOT_OURS.fullmatch(key)
    }


def label_fault(names: Sequence[object]) -> str | None:
    """Why a caller could not tell labels apart, or None if they can be."""
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            return f"a label has no name: {shown(name)}"
        if name in seen:
            return f"two labels have the name {shown(name)}"
        seen.add(name)
    return None


def _check_names(config: Mapping[str, Any], file: Path) -> None:
    """Check the fields that name something, of which others read the first entry unchecked."""
    architectures = config.get("architectures")
    if architectures is not None and (
        not isinstance(architectures, list)
        or not all(isinstance(one, str) and len(one) <= 200 for one in architectures)
    ):
        raise _refused(
            file, "architectures", f"expected a list of names, got {shown(architectures)}"
        )
    for field, allowed in (
        ("dtype", _DTYPES),
        ("torch_dtype", _DTYPES),
        ("problem_type", _PROBLEMS),
    ):
        value = config.get(field)
        if value is not None and value not in allowed:
            raise _refused(file, field, f"expected one of {', '.join(allowed)}; got {shown(value)}")
    for field in ("model_type", "muxing_variant", "demuxing_variant"):
        value = config.get(field)
        if value is not None and not isinstance(value, str):
            raise _refused(file, field, f"expected a name, got {shown(value)}")
    if config.get("quantization_config") is not None:
        raise _refused(file, "quantization_config", "quantized weights are not covered")


def _check_labels(config: Mapping[str, Any], weights: WeightsFacts, file: Path) -> None:
    names = config.get("id2label")
    field, highest = "num_labels", config.get("num_labels")
    if names is not None:
        if not isinstance(names, dict):
            raise _refused(
                file, "id2label", f"expected an object of names by index, got {shown(names)}"
            )
        for index, name in names.items():
            if not re.fullmatch(r"[0-9]{1,9}", index) or isinstance(name, dict | list):
                raise _refused(
                    file,
                    "id2label",
                    f"expected names by index, got {shown(name)} at {shown(index)}",
                )
        if names and highest is None:
            field, highest = "id2label", max(map(int, names)) + 1
    if is_whole(highest) and highest > _MOST_LABELS:
        raise _refused(file, field, f"{highest:,} labels, at most {_MOST_LABELS:,} are covered")


def _check_fields(
    config: Mapping[str, Any], weights: WeightsFacts, file: Path, *, hidden: int, within: str = ""
) -> None:
    sides = (config.get(field) for field in _HIDDEN)
    hidden = next((side for side in sides if is_whole(side) and side > 0), hidden)
    for key, value in config.items():
        field = f"{within}{key}"
        if key in _NAMES:
            continue
        unsaid = key == "num_labels" and value is None
        if _POSITIVE.fullmatch(key) and not unsaid and not (is_whole(value) and value >= 1):
            raise _refused(
                file, field, f"expected a whole number of at least 1, got {shown(value)}"
            )
        if isinstance(value, dict):
            _check_fields(value, weights, file, hidden=hidden, within=f"{field}.")
        elif isinstance(value, list) and len(value) > max(_MOST_LIST, weights.tensors):
            raise _refused(file, field, f"a list of {len(value):,}")
        elif _COUNTS.search(key):
            parts = sum(_numbers(value))
            if parts > max(_FEW_PARTS, weights.tensors):
                raise _refused(
                    file,
                    field,
                    f"{shown(value)}, but {weights.name} has {weights.tensors:,} tensors",
                )
        elif _SIZES.search(key) and key not in _NO_SIZES:
            for number in _numbers(value):
                if number * hidden > most_values(weights):
                    raise _refused(
                        file,
                        field,
                        f"{shown(number)} rows of {hidden:,} values are more than {weights.name} "
                        f"holds in {weights.bytes:,} bytes",
                    )


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers of a field that is one, or a list of them."""
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif is_whole(value):
        yield value


def _refused(file: Path, field: str, why: str) -> FamilyError:
    return FamilyError(f"{file}: field {field}: {why}", field=field)
