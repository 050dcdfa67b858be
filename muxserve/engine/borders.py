"""Where a text can be cut without changing the tokens of its parts.

For tokenizers that never look across a space, that is before a space that follows a letter or a
digit. Other tokenizers do not promise that, so their texts are tokenized whole.
"""

import json
from typing import Any

from tokenizers import Tokenizer


def has_word_borders(tokenizer: Tokenizer) -> bool:
    """Whether no token spans a space, by the tokenizer's own description."""
    told = json.loads(tokenizer.to_str())
    kinds = {
        part: None if told[part] is None else told[part]["type"]
        for part in ("model", "normalizer", "pre_tokenizer", "post_processor")
    }
    if kinds["post_processor"] not in (
        None,
        "TemplateProcessing",
        "BertProcessing",
        "RobertaProcessing",
        "ByteLevel",
    ):
        return False
    if not all(_is_one_word(one) for one in told["added_tokens"]):
        return False
    if kinds["model"] == "WordPiece":
        return kinds["normalizer"] in (None, "BertNormalizer", "Lowercase") and kinds[
            "pre_tokenizer"
        ] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
    return (
        kinds["model"] == "BPE"
        and kinds["normalizer"] is None
        and kinds["pre_tokenizer"] == "ByteLevel"
        and told["pre_tokenizer"]["use_regex"] is True
        and not told["model"].get("dropout")
    )


def _is_one_word(added: dict[str, Any]) -> bool:
    """Whether an added token is a word that normalizing, which may come first, leaves alone."""
    content = added["content"]
    return not any(map(str.isspace, content)) and (content.isascii() or not added["normalized"])


def last_border(text: str, before: int) -> int | None:
    """The last border up to ``before``, in characters; None without one."""
    at = text.rfind(" ", 1, before)
    while at > 0 and not text[at - 1].isalnum():
        at = text.rfind(" ", 1, at)
    return at if at > 0 else None


def next_border(text: str, after: int) -> int | None:
    """The first border from ``after`` on, in characters; None without one."""
    at = text.find(" ", max(1, after))
    while at > 0 and not text[at - 1].isalnum():
        at = text.find(" ", at + 1)
    return at if at > 0 else None
