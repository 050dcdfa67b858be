"""A student that starts from a trained one: of another depth, vocabulary, width or task.

If it is deeper, new layers are put between the trained ones, each of them quiet at first. A new
layer's weights come from the pretrained encoder, with its two output projections scaled down (as
residual branches are in Zhang et al., Fixup, ICLR 2019). So the output of the trained layers passes
nearly unchanged, and training starts near the quality of the trained student. If it is shallower,
layers are left out.
"""

from collections.abc import Mapping, Sequence

import torch

from muxserve.training.distil.student import spread
from muxserve.training.pretrained import PlainEncoder, Student

#: Scale of a new layer's output projections.
QUIET = 0.1


def start_from(
    student: Student,
    trained: dict[str, torch.Tensor],
    encoder: PlainEncoder,
    pieces: Mapping[int, int],
) -> None:
    """Put a trained student's weights into another student cut from the same encoder.

    Heads of another task stay as they are. So does the retrieval head if the trained weights have
    none: it is learnt again within a few hundred steps.

    Args:
        student: changed in place.
        trained: the trained student's state; its layers are taken to be spread evenly over the
            encoder's.
        encoder: what both are cut from.
        pieces: rows of the student's embeddings -> rows of the trained ones, for the word pieces
            that both have.

    Raises:
        ValueError: for weights of another kind of network.
    """
    prefix = f"{student.base_model_prefix}."
    trained = {key: value.float() for key, value in trained.items()}
    depth = len({key.split(".")[3] for key in trained if key.startswith(f"{prefix}encoder.layer.")})
    state = student.state_dict()
    layers = student.config.num_hidden_layers
    if layers > depth:
        own = spread(depth, encoder.layers)
        wanted = _with_more(own, layers, encoder.layers)
        trained = _deepened(trained, encoder.state, prefix, own, wanted)
    elif layers < depth:
        trained = _shallower(trained, prefix, spread(layers, depth))
    embeddings = f"{prefix}embeddings.word_embeddings.weight"
    for key, value in state.items():
        if key == embeddings:
            for row, source in pieces.items():
                value[row] = trained[key][source]
        elif key.startswith("retrieval_head.decoder."):
            continue  # BERT's is the embeddings, and its bias has another vocabulary's rows
        elif key in trained and trained[key].shape[1:] == value.shape[1:]:
            # A narrower student has the first keys and gates of a wider one.
            if len(trained[key]) >= len(value) and not key.startswith("classifier."):
                state[key] = trained[key][: len(value)]
            elif trained[key].shape == value.shape:
                state[key] = trained[key]
        elif key.startswith(prefix):
            raise ValueError(f"the weights to start from are of another network: {key}")
    student.load_state_dict(state)


def _with_more(own: Sequence[int], count: int, available: int) -> list[int]:
    """``own`` and enough of the other layers to make ``count``, spread evenly over those."""
    left = [layer for layer in range(available) if layer not in own]
    return sorted([*own, *(left[i] for i in spread(count - len(own), len(left)))])


def _shallower(
    trained: dict[str, torch.Tensor], prefix: str, kept: Sequence[int]
) -> dict[str, torch.Tensor]:
    """A trained student's tensors with only some of its layers, by number.

    If the student has all of the encoder's layers, they are those that the shallower one is cut
    from.
    """
    marker = f"{prefix}encoder.layer."
    state = {key: value for key, value in trained.items() if not key.startswith(marker)}
    for place, layer in enumerate(kept):
        start = f"{marker}{layer}."
        for key, value in trained.items():
            if key.startswith(start):
                state[f"{marker}{place}.{key.removeprefix(start)}"] = value
    return state


def _deepened(
    trained: dict[str, torch.Tensor],
    pretrained: dict[str, torch.Tensor],
    prefix: str,
    own: Sequence[int],
    wanted: Sequence[int],
) -> dict[str, torch.Tensor]:
    """A trained student's tensors with layers of the pretrained encoder put in.

    Args:
        trained: the student's state, its backbone's keys starting with ``prefix``.
        pretrained: the encoder's state, by the same names without the prefix.
        prefix: such as ``bert.``.
        own: the encoder's layers that the trained ones were cut from, in order.
        wanted: the encoder's layers of the other student, all of ``own`` among them.
    """
    marker = f"{prefix}encoder.layer."
    state = {key: value for key, value in trained.items() if not key.startswith(marker)}
    for place, layer in enumerate(wanted):
        is_own = layer in own
        source = trained if is_own else pretrained
        start = f"{marker}{own.index(layer)}." if is_own else f"encoder.layer.{layer}."
        # A quiet layer only normalises, and as the layer below it, whose output it passes on.
        below = max((one for one in own if one < layer), default=own[0])
        norm = f"{marker}{own.index(below)}.output.LayerNorm."
        for key, value in source.items():
            if not key.startswith(start):
                continue
            rest = key.removeprefix(start)
            if not is_own and "LayerNorm." in rest:
                value = trained[norm + rest.rsplit(".", 1)[1]]
            elif not is_own and rest.endswith(("output.dense.weight", "output.dense.bias")):
                value = QUIET * value
            state[f"{marker}{place}.{rest}"] = value
    return state
