"""What a MUX-PLM checkpoint says about itself: its widths, its parts, and how it must be served.

The keys that official MUX-PLM checkpoints carry keep their names (``num_instances``,
``muxing_variant``, ...); the keys added here say how a checkpoint was trained, so that the engine
cannot serve it in the wrong mode.
"""

from typing import Any

from transformers import BertConfig

PADDING_MODES = ("longest", "max_length")
ENCODER_MASKS = ("union", "none")
POOLINGS = ("mean", "first")
HEADS = ("linear", "dense")


class MuxBertConfig(BertConfig):
    """Configuration of a multiplexed BERT.

    Attributes:
        num_instances: the widest N these weights serve.
        widths: every N these weights serve, ascending; None means ``[num_instances]``. Narrower
            widths use the first N rows of the multiplexer's and the demultiplexer's keys.
        plain_single: at N=1 the backbone runs alone: no multiplexer, no second embedding step, no
            demultiplexer. Only for weights trained with several widths.
        muxing_variant: name of the multiplexer, see ``muxserve.models.multiplexers``.
        demuxing_variant: name of the demultiplexer, see ``muxserve.models.demultiplexers``.
        num_hidden_demux_layers: D of the index-position demultiplexer, counted as the reference
            does (it applies D-1 layers).
        gaussian_hadamard_norm: L2 norm of each row of the initial Gaussian keys.
        learn_muxing: whether the multiplexer's keys are trained.
        padding: "longest" pads to the longest text of a batch; "max_length" always pads to
            ``trained_length`` (weights trained without a mask see padding as content).
        encoder_mask: "union" attends to a position if any slot has a token there, and a slot's
            padding adds nothing to the mixture; "none" gives the encoder no mask at all.
        trained_length: tokens per text, special tokens included, that the weights were trained for.
        pooling: "first" reads position 0; "mean" averages a slot's own tokens.
        classifier_head: "linear" (BERT's) or "dense" (ELECTRA's: dense, gelu, projection).
        first_token_id: token id forced at position 0 (the reference hard-codes 101), or None.
        retrieval_head: whether the token-retrieval head is part of the weights (training only).
        retrieval_percentage: share of token positions that enter the retrieval loss.
        retrieval_loss_coeff, task_loss_coeff: weights of the two losses.
    """

    model_type = "muxbert"

    num_instances: int = 2
    widths: list[int] | None = None
    plain_single: bool = False
    muxing_variant: str = "gaussian_hadamard"
    demuxing_variant: str = "index_pos"
    num_hidden_demux_layers: int = 2
    gaussian_hadamard_norm: float | int = 1.0
    learn_muxing: bool | int = False
    padding: str = "longest"
    encoder_mask: str = "union"
    trained_length: int = 128
    pooling: str = "first"
    classifier_head: str = "linear"
    first_token_id: int | None = None
    retrieval_head: bool = False
    retrieval_percentage: float | int = 1.0
    retrieval_loss_coeff: float | int = 0.0
    task_loss_coeff: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.widths is None:
            self.widths = [self.num_instances]
        self._check()

    @property
    def served_widths(self) -> list[int]:
        """Every N that these weights serve, ascending."""
        return self.widths or [self.num_instances]

    @property
    def label_count(self) -> int:
        """Number of labels (``num_labels``, whose type allows None)."""
        return int(self.num_labels or 0)

    def _check(self) -> None:
        """Raise ValueError, naming the field, for a combination that no weights can have."""
        widths = self.served_widths
        if self.num_instances < 1:
            raise ValueError(f"num_instances must be at least 1, got {self.num_instances}")
        if sorted(set(widths)) != widths or widths[0] < 1:
            raise ValueError(f"widths must be ascending positive integers, got {widths}")
        if widths[-1] != self.num_instances:
            raise ValueError(
                f"widths must end with num_instances ({self.num_instances}), got {widths}"
            )
        if self.plain_single and widths[0] != 1:
            raise ValueError(f"plain_single needs 1 among widths, got {widths}")
        if self.trained_length > self.max_position_embeddings:
            raise ValueError(
                f"trained_length ({self.trained_length}) is over max_position_embeddings "
                f"({self.max_position_embeddings})"
            )
        for field, allowed in (
            ("padding", PADDING_MODES),
            ("encoder_mask", ENCODER_MASKS),
            ("pooling", POOLINGS),
            ("classifier_head", HEADS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}; got {value!r}")
        if self.encoder_mask == "none" and self.padding != "max_length":
            raise ValueError(
                "encoder_mask 'none' makes padding content, so padding must be 'max_length'; "
                f"got {self.padding!r}"
            )
