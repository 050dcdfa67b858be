"""A folder, a ``tokenizer.json`` or a name on the hub in; a tokenizer and its own settings out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.modeling_utils import PreTrainedModel

from muxserve.errors import FamilyError
from muxserve.models.files import check_links, read_json_object
from muxserve.models.source import fetch
from muxserve.models.spec import Side
from muxserve.models.tokenizer_file import built_tokenizer, read_tokenizer_file

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
_SETTINGS = "tokenizer_config.json"
#: ``transformers`` writes 10^30 for a tokenizer without a limit.
_NO_LIMIT = 10**9
#: The smallest ``max_length`` of a family.
_LEAST_TOKENS = 3


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer as it was published.

    Attributes:
        tokenizer: without truncation and padding.
        max_length: most tokens of a text; None if it has no limit.
        truncation_side: where a text that is too long is cut.
        pad_id: id of its padding token; None if it has none.
    """

    tokenizer: Tokenizer
    max_length: int | None
    truncation_side: Side
    pad_id: int | None


def read_tokenizer(source: str, model: PreTrainedModel) -> Tokenizer:
    """The tokenizer of ``read_source_tokenizer`` alone."""
    return read_source_tokenizer(source, model).tokenizer


def read_source_tokenizer(source: str, model: PreTrainedModel) -> SourceTokenizer:
    """The tokenizer of a folder, a ``tokenizer.json`` or a name on the hub, for ``model``.

    Raises:
        FamilyError: if there is none, or it has more pieces than the model, or odd settings.
    """
    file = Path(source)
    if not file.is_file():
        folder = fetch(source, ("*.json", "*.txt", "*.model"))
        file = folder / "tokenizer.json"
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise FamilyError(
                f"{folder}: no tokenizer; name one with --tokenizer (official MUX-BERT "
                "checkpoints use bert-base-uncased)",
                field="tokenizer",
            )
        check_links(folder, TOKENIZER_FILES)
    rows = int(model.config.vocab_size)
    if file.is_file():
        # A stored tokenizer.json is loaded as it is: AutoTokenizer would rebuild it by model type.
        made = read_tokenizer_file(file, rows=rows)
    else:
        made = built_tokenizer(file.parent, rows=rows)
    stored = made.truncation or {}
    made.no_truncation()
    made.no_padding()
    if made.get_vocab_size() > model.config.vocab_size:
        raise FamilyError(
            f"{source}: the tokenizer has {made.get_vocab_size():,} pieces, the weights "
            f"{model.config.vocab_size:,}: it is another model's",
            field="tokenizer",
        )
    settings_file = file.parent / _SETTINGS
    settings = read_json_object(settings_file) if settings_file.is_file() else {}
    return SourceTokenizer(
        made,
        _max_length(settings, settings_file),
        _side(settings, str(stored.get("direction", "right")).lower(), settings_file),
        _pad_id(settings, made),
    )


def _max_length(settings: dict[str, Any], file: Path) -> int | None:
    stated = settings.get("model_max_length", settings.get("max_len"))
    if stated is None:
        return None
    if not isinstance(stated, int | float) or isinstance(stated, bool) or not stated >= 1:
        raise FamilyError(
            f"{file}: field model_max_length: expected a whole number of tokens, got {stated!r}",
            field="model_max_length",
        )
    if stated >= _NO_LIMIT:
        return None
    if stated < _LEAST_TOKENS:
        raise FamilyError(
            f"{file}: field model_max_length: {stated} tokens are too few, a family takes at "
            f"least {_LEAST_TOKENS}",
            field="model_max_length",
        )
    return int(stated)


def _side(settings: dict[str, Any], stored: str, file: Path) -> Side:
    side = settings.get("truncation_side", stored)
    if side == "left":
        return "left"
    if side == "right":
        return "right"
    raise FamilyError(
        f"{file}: field truncation_side: expected left or right, got {side!r}",
        field="truncation_side",
    )


def _pad_id(settings: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    token = settings.get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    return tokenizer.token_to_id(token) if isinstance(token, str) else None
