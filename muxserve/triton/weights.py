"""Stores the graphs of a model folder with their weights in one shared file.

Members of a family mostly share their weights, so a tensor that several graphs hold is stored once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

WEIGHTS_FILE = "weights.bin"
#: Smaller tensors stay in the graph, so that shape inference can read them.
SMALLEST_BYTES = 1024
#: Tensors start at page boundaries, so that a runtime may map them into memory.
ALIGNED_BYTES = 4096


def store_graphs(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> None:
    """Write each graph to ``folder`` under its file name, and all weights to ``weights.bin``.

    The graphs are changed: their large tensors then only refer to the file.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for graph in graphs.values():
            for tensor in graph.graph.initializer:
                data = numpy_helper.to_array(tensor).tobytes()
                if len(data) < SMALLEST_BYTES:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in places:
                    start = -(-weights.tell() // ALIGNED_BYTES) * ALIGNED_BYTES
                    weights.write(b"\0" * (start - weights.tell()))
                    weights.write(data)
                    places[key] = start, len(data)
                _point(tensor, *places[key])
    for name, graph in graphs.items():
        (folder / name).write_bytes(graph.SerializeToString())


def _point(tensor: TensorProto, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
