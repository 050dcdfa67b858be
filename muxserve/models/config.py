"""What a MUX-PLM checkpoint says about itself: its widths, its parts, and how it must be served.

Keys of official MUX-PLM checkpoints keep their names (``num_instances``, ``muxing_variant``, ...).
Keys added here say how a checkpoint was trained, so the engine cannot serve it in the wrong mode.
"""

from typing import TYPE_CHECKING, Any

from transformers import BertConfig, ElectraConfig, PreTrainedConfig

PADDING_MODES = ("longest", "max_length")
ENCODER_MASKS = ("union", "none")
POOLINGS = ("mean", "first")
HEADS = ("linear", "dense")


class MuxConfig(PreTrainedConfig):
    """What multiplexing adds to the configuration of a backbone.

    Attributes:
        num_instances: the widest N these weights serve.
        widths: every N these weights serve, ascending; None means ``[num_instances]``. Narrower
            widths use the first N rows of the multiplexer's and the demultiplexer's keys.
        plain_single: at N=1 the backbone runs alone: no multiplexer, no second embedding step, no
            demultiplexer. Only for weights trained with several widths.
        muxing_variant: name of the multiplexer, see ``muxserve.models.multiplexers``.
        demuxing_variant: name of the demultiplexer, see ``muxserve.models.demultiplexers``.
        num_hidden_demux_layers: D of the index-position demultiplexer, counted as in the reference
            (D-1 layers are applied).
        gaussian_hadamard_norm: L2 norm of each row of the initial Gaussian keys.
        binary_hadamard_epsilon: how far neighbouring chunks of the binary keys overlap, as a share
            of a chunk.
        learn_muxing: whether the multiplexer's keys are trained.
        muxing_slot_mask: the contextual multiplexer's attention over slots leaves out the slots
            that are padding at a position (the reference does so for sentences only).
        padding: "longest" pads to the longest text of a batch; "max_length" always pads to
            ``trained_length`` (weights trained without a mask see padding as content).
        encoder_mask: "union" attends to a position if any slot has a token there, and a slot's
            padding adds nothing to the mixture; "none" gives the encoder no mask at all.
        trained_length: tokens per text, special tokens included, that the weights were trained for.
        pooling: "first" reads position 0; "mean" averages a slot's own tokens.
        classifier_head: "linear" (BERT's) or "dense" (ELECTRA's: dense, gelu, projection).
        first_token_id: token id forced at position 0 (the reference hard-codes 101), or None; with
            the ``index`` demultiplexer, the id that ends its prefix instead.
        prefix_filler_id: token id that fills the ``index`` prefix; the ids from 2 below it
            downwards name the slots.
        retrieval_head: whether the token-retrieval head is part of the weights (training only).
        retrieval_residual: the retrieval head reads all D layers with residuals (ELECTRA's),
            instead of two without (BERT's).
        retrieval_percentage: share of token positions that enter the retrieval loss.
        retrieval_loss_coeff: weight of the retrieval loss.
        task_loss_coeff: weight of the task's loss.
    """

    if TYPE_CHECKING:  # every backbone's config has these
        vocab_size: int = 0
        hidden_size: int = 0
        max_position_embeddings: int = 0
        hidden_dropout_prob: float = 0.0
        layer_norm_eps: float = 0.0
        pad_token_id: int | None = None

    num_instances: int = 2
    widths: list[int] | None = None
    plain_single: bool = False
    muxing_variant: str = "gaussian_hadamard"
    demuxing_variant: str = "index_pos"
    num_hidden_demux_layers: int = 2
    gaussian_hadamard_norm: float | int = 1.0
    binary_hadamard_epsilon: float | int = 0.0
    learn_muxing: bool | int = False
    muxing_slot_mask: bool = True
    padding: str = "longest"
    encoder_mask: str = "union"
    trained_length: int = 128
    pooling: str = "first"
    classifier_head: str = "linear"
    first_token_id: int | None = None
    prefix_filler_id: int = 680
    retrieval_head: bool = False
    retrieval_residual: bool = False
    retrieval_percentage: float | int = 1.0
    retrieval_loss_coeff: float | int = 0.0
    task_loss_coeff: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if type(self) is not MuxConfig:
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

    @property
    def embedding_width(self) -> int:
        """E, the size of the embeddings that are multiplexed; ELECTRA's may differ from H."""
        return int(getattr(self, "embedding_size", self.hidden_size))

    def prefix_length(self, n: int) -> int:
        """Positions that the demultiplexer puts before a text at N=n."""
        return n + 1 if self.demuxing_variant == "index" else 0

    def _check(self) -> None:
        """Raise ValueError, naming the field, for a combination that cannot be."""
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
        positions = self.max_position_embeddings - self.prefix_length(self.num_instances)
        if self.trained_length > positions:
            raise ValueError(
                f"trained_length ({self.trained_length}) is over the {positions} positions that "
                f"max_position_embeddings ({self.max_position_embeddings}) leaves for a text"
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
        if self.demuxing_variant == "index":
            self._check_prefix()

    def _check_prefix(self) -> None:
        lowest = self.prefix_filler_id - 1 - self.num_instances
        if lowest < 0 or self.prefix_filler_id >= self.vocab_size:
            raise ValueError(
                f"prefix_filler_id ({self.prefix_filler_id}) and the {self.num_instances} slot ids "
                f"from 2 below it must lie within the vocabulary of {self.vocab_size}"
            )
        if self.first_token_id is None:
            raise ValueError("demuxing_variant 'index' needs first_token_id, to end its prefix")


class MuxBertConfig(MuxConfig, BertConfig):
    """Configuration of a multiplexed BERT; see ``MuxConfig`` for what multiplexing adds."""

    model_type = "muxbert"


class MuxElectraConfig(MuxConfig, ElectraConfig):
    """Configuration of a multiplexed ELECTRA; see ``MuxConfig`` for what multiplexing adds.

    Its defaults are ELECTRA's: a dense classifier head and a retrieval head with residuals.
    """

    model_type = "muxelectra"

    classifier_head: str = "dense"
    retrieval_residual: bool = True
