"""``tokenizer.json`` checked before it is loaded, and loaded from the checked content.

A wrong id costs a minute and gigabytes, or ends a forward. A few replacements that each double a
text let any text fill the memory. So every id, and how much longer a text may get, is checked
before the library sees the file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from muxserve.errors import FamilyError
from muxserve.models.charsmap import charsmap_fault
from muxserve.models.files import is_whole, read_json, read_json_object, reason, shown

#: The largest published tokenizers have 35 MB and 500,000 pieces.
MOST_BYTES = 64 << 20
#: Bound of a tokenizer's ids if its network is not known.
MOST_ROWS = 1 << 22
#: How many times longer replacements may make a text, and the special tokens added to one.
MOST_GROWTH, MOST_SPECIAL = 64, 64
#: Steps of a normalizer or another part, nested ones included; characters of one setting.
_MOST_STEPS, _MOST_SETTING = 256, 4096
#: A word is looked up piece by piece, in time that grows with its length squared.
_MOST_WORD = 1000
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
#: Files that ``transformers`` reads beside a vocabulary.
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_INNER = {"normalizers", "pretokenizers", "processors", "decoders"}
#: A pattern that always consumes a character: sets, escapes and characters, repeated or not.
_TAKES_ONE = re.compile(
    r"(?:(?:\[[^\[\]\\]+\]|\\[sSwWdDnrt]|\\[pP]\{\w+\}|[^\\\[\](){}*?+|^$.])(?:\+|\{[1-9]\d*,?\d*\})?)+"
)


def read_tokenizer_file(
    file: Path, *, rows: int = MOST_ROWS, max_length: int | None = None
) -> Tokenizer:
    """Load a ``tokenizer.json`` for a network whose embedding table has ``rows``.

    Args:
        file: the file.
        rows: ids must be below it.
        max_length: most tokens of a text; special tokens must leave room in it.

    Raises:
        FamilyError: naming the field.
    """
    content = read_json(file, most_bytes=MOST_BYTES)
    if not isinstance(content, dict):
        raise _refused(file, "", f"not a tokenizer file: expected an object, got {shown(content)}")
    check_tokenizer(content, file, rows=rows, max_length=max_length)
    content["padding"] = None  # the engine pads
    return made_tokenizer(content, file)


def built_tokenizer(folder: Path, *, rows: int = MOST_ROWS) -> Tokenizer:
    """Have ``transformers`` build a tokenizer from a folder with a vocabulary, and check it.

    Raises:
        FamilyError: if it builds none, or one that ``check_tokenizer`` refuses.
    """
    for name in _SETTINGS_FILES:
        if (folder / name).exists():
            _check_tokens_of_settings(read_json_object(folder / name), folder / name, rows)
    try:
        built = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        content = json.loads(built.backend_tokenizer.to_str())
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _refused(folder, "", f"no tokenizer can be built: {reason(error)}") from None
        raise
    check_tokenizer(content, folder, rows=rows)
    return made_tokenizer(content, folder)


def _check_tokens_of_settings(content: Mapping[str, Any], file: Path, rows: int) -> None:
    """Check the ids in the files beside a vocabulary."""
    decoder = content.get("added_tokens_decoder")
    ids = list(decoder) if isinstance(decoder, dict) else []
    if file.name == "added_tokens.json":
        ids = list(content.values())
    for token in ids:
        digits = isinstance(token, str) and token.isdecimal() and len(token) < 10
        _check_id(int(token) if digits else token, "added tokens", file, rows)


def made_tokenizer(content: Mapping[str, Any], file: Path) -> Tokenizer:
    """Load a tokenizer from checked content: the library does not read the file again."""
    try:
        return Tokenizer.from_str(json.dumps(content))
    except BaseException as error:
        # tokenizers raises bare Exceptions, and panics as PanicException, which is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _refused(file, "", f"not a tokenizer file: {reason(error)}") from None
        raise


def check_tokenizer(
    content: Mapping[str, Any], file: Path, *, rows: int = MOST_ROWS, max_length: int | None = None
) -> None:
    """Check the content of a ``tokenizer.json``; see ``read_tokenizer_file``."""
    model = content.get("model")
    if not isinstance(model, dict):
        raise _refused(
            file, "model", f"not a tokenizer file: expected an object, got {shown(model)}"
        )
    _check_model(model, file, rows)
    _check_added(content.get("added_tokens"), file, rows)
    _check_truncation(content.get("truncation"), file)
    growth = 1.0
    for part in _PARTS:
        steps = list(_steps(content.get(part), part, file))
        if len(steps) > _MOST_STEPS:
            raise _refused(file, part, f"{len(steps):,} steps, at most {_MOST_STEPS} are covered")
        for step in steps:
            _check_settings(step, part, file)
            growth *= _growth(step, part, file)
    if growth > MOST_GROWTH:
        raise _refused(
            file,
            "normalizer",
            f"its replacements may make a text {growth:,.0f} times as long, at most "
            f"{MOST_GROWTH} is covered",
        )
    _check_special(content.get("post_processor"), file, rows, max_length)


def _check_model(model: Mapping[str, Any], file: Path, rows: int) -> None:
    kind = model.get("type")
    if kind is not None and kind not in _MODELS:
        raise _refused(
            file, "model.type", f"expected one of {', '.join(_MODELS)}; got {shown(kind)}"
        )
    vocab = model.get("vocab")
    if isinstance(vocab, dict | list) and len(vocab) > rows:
        raise _refused(
            file,
            "model.vocab",
            f"the tokenizer has {len(vocab):,} pieces, the weights {rows:,}: it is another model's",
        )
    if isinstance(vocab, dict):
        for piece, token in vocab.items():
            if type(token) is not int or not 0 <= token < rows:  # runs half a million times
                _check_id(token, f"model.vocab, piece {shown(piece)}", file, rows)
    elif isinstance(vocab, list):
        for index, entry in enumerate(vocab):
            pair = isinstance(entry, list) and len(entry) == 2
            if not pair or not isinstance(entry[0], str) or not _is_number(entry[1]):
                raise _refused(
                    file, f"model.vocab.{index}", "expected a piece and its score as a number"
                )
        unknown = model.get("unk_id")
        if unknown is not None:
            _check_id(unknown, "model.unk_id", file, len(vocab))
    else:
        raise _refused(file, "model.vocab", f"expected pieces and their ids, got {shown(vocab)}")
    _check_settings({key: one for key, one in model.items() if isinstance(one, str)}, "model", file)
    longest = model.get("max_input_chars_per_word", 0)
    if not is_whole(longest) or not 0 <= longest <= _MOST_WORD:
        raise _refused(
            file,
            "model.max_input_chars_per_word",
            f"expected a whole number up to {_MOST_WORD:,}, got {shown(longest)}",
        )
    if model.get("dropout"):
        raise _refused(file, "model.dropout", "one text would have other tokens each time")


def _check_added(added: Any, file: Path, rows: int) -> None:
    if added is None:
        return
    if not isinstance(added, list):
        raise _refused(file, "added_tokens", f"expected a list, got {shown(added)}")
    for index, one in enumerate(added):
        field = f"added_tokens.{index}"
        if not isinstance(one, dict) or not isinstance(one.get("content"), str):
            raise _refused(file, field, "expected an object with content and id")
        if not one["content"]:
            raise _refused(file, f"{field}.content", "an added token without characters")
        _check_id(one.get("id"), f"{field}.id", file, rows)


def _check_truncation(truncation: Any, file: Path) -> None:
    if truncation is None:
        return
    for key in ("max_length", "stride"):
        value = truncation.get(key, 0) if isinstance(truncation, dict) else truncation
        if not is_whole(value) or not 0 <= value <= MOST_ROWS:
            raise _refused(
                file, f"truncation.{key}", f"expected a whole number, got {shown(value)}"
            )


def _steps(part: Any, name: str, file: Path) -> Iterator[dict[str, Any]]:
    """The steps of a part of the tokenizer, in order; the steps in a Sequence one by one."""
    if part is None:
        return
    if not isinstance(part, dict):
        raise _refused(file, name, f"expected an object, got {shown(part)}")
    inner = [key for key in _INNER if isinstance(part.get(key), list)]
    if not inner:
        yield part
    for key in inner:
        for one in part[key]:
            yield from _steps(one, name, file)


def _check_settings(step: Mapping[str, Any], part: str, file: Path) -> None:
    for key, value in step.items():
        if key == "precompiled_charsmap":
            fault = charsmap_fault(value) if isinstance(value, str) else f"got {shown(value)}"
            if fault:
                raise _refused(file, f"{part}.{key}", fault)
        elif isinstance(value, str) and len(value) > _MOST_SETTING:
            raise _refused(
                file, f"{part}.{key}", f"{len(value):,} characters, at most {_MOST_SETTING:,}"
            )


def _growth(step: Mapping[str, Any], part: str, file: Path) -> float:
    """How many times longer a step may make a text; what every tokenizer does counts as 1."""
    kind = step.get("type")
    if kind == "Prepend":
        return 1 + len(_text(step.get("prepend"), f"{part}.prepend", file))
    if kind != "Replace" or part == "decoder":
        return 1
    content = len(_text(step.get("content"), f"{part}.content", file))
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise _refused(
            file, f"{part}.pattern", f"expected a String or a Regex, got {shown(pattern)}"
        )
    ((how, what),) = pattern.items()
    length = len(_text(what, f"{part}.pattern.{how}", file))
    if length > _MOST_SETTING:
        raise _refused(file, f"{part}.pattern", f"{length:,} characters, at most {_MOST_SETTING:,}")
    if how == "String" and length:
        return max(1, content / length)
    # A pattern that may match between two characters adds its content to every character.
    return max(1, content) if how == "Regex" and _TAKES_ONE.fullmatch(what) else 1 + content


def _check_special(part: Any, file: Path, rows: int, max_length: int | None) -> None:
    """Check the special tokens added to each text: their ids need not be in the vocabulary."""
    count = 0
    for step in _steps(part, "post_processor", file):
        if step.get("type") == "TemplateProcessing":
            count += _check_template(step, file, rows)
        for key in ("sep", "cls"):
            pair = step.get(key)
            if pair is None:
                continue
            if not isinstance(pair, list) or len(pair) != 2:
                raise _refused(file, f"post_processor.{key}", f"expected a pair, got {shown(pair)}")
            _check_id(pair[1], f"post_processor.{key}", file, rows)
            count += 1
    most = MOST_SPECIAL if max_length is None else min(MOST_SPECIAL, max_length - 1)
    if count > most:
        raise _refused(file, "post_processor", f"adds {count:,} tokens to a text, at most {most}")


def _check_template(step: Mapping[str, Any], file: Path, rows: int) -> int:
    """Check a template, and return how many tokens it adds to a text."""
    special = step.get("special_tokens")
    if not isinstance(special, dict):
        raise _refused(
            file, "post_processor.special_tokens", f"expected an object, got {shown(special)}"
        )
    lengths: dict[str, int] = {}
    for name, one in special.items():
        ids = one.get("ids") if isinstance(one, dict) else None
        field = f"post_processor.special_tokens, {shown(name)}"
        if not isinstance(ids, list):
            raise _refused(file, field, "expected an object with ids")
        for token in ids:
            _check_id(token, field, file, rows)
        lengths[name] = len(ids)
    single = step.get("single")
    pieces = single if isinstance(single, list) else []
    texts = sum(isinstance(one, dict) and "Sequence" in one for one in pieces)
    if texts != 1:
        raise _refused(file, "post_processor.single", f"must have a text once, has {texts:,}")
    added = 0
    for one in pieces:
        token = one.get("SpecialToken") if isinstance(one, dict) else None
        if token is not None:
            name = token.get("id") if isinstance(token, dict) else token
            if not isinstance(name, str) or name not in lengths:
                raise _refused(
                    file, "post_processor.single", f"{shown(name)} is none of special_tokens"
                )
            added += lengths[name]
    return added


def _check_id(token: Any, field: str, file: Path, rows: int) -> None:
    if not is_whole(token) or not 0 <= token < rows:
        raise _refused(
            file,
            field,
            f"expected an id below the {rows:,} rows of the network, got {shown(token)}",
        )


def _text(value: Any, field: str, file: Path) -> str:
    if not isinstance(value, str):
        raise _refused(file, field, f"expected text, got {shown(value)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refused(file: Path, field: str, why: str) -> FamilyError:
    told = f"field {field}: {why}" if field else why
    return FamilyError(f"{file}: {told}", field="tokenizer")
