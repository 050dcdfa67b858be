"""A trained network and its tokenizer, as they are saved."""

from pathlib import Path

from tokenizers import Tokenizer

from muxserve.training.pretrained import Student


def without_retrieval_head(model: Student) -> Student:
    """A copy for serving: only training needs the retrieval head."""
    config = type(model.config).from_dict({**model.config.to_dict(), "retrieval_head": False})
    lean = type(model)(config)
    state = model.state_dict()
    # Besides the head, its demultiplexer has layers that only retrieval reads.
    lean.load_state_dict({key: state[key] for key in lean.state_dict()})
    return lean


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` without truncation and padding.

    Raises:
        OSError: if it cannot be written.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The tokenizer's own save raises a bare Exception where the disk is full.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
