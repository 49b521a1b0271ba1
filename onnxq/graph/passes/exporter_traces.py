"""Stack traces that an exporter leaves at every node; in small models they outweigh the weights."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs

# Written by PyTorch's exporter for its own debugging. All other metadata, and all of the model's and the graph's own,
# may be an application's: it stays.
_TRACES = "pkg.torch."


def drop_exporter_traces(model: ir.Model) -> int:
    """Removes the metadata of nodes and their outputs that an exporter wrote to debug itself; returns how many."""
    count = 0
    for graph in all_graphs(model):
        for node in graph:
            for properties in (node.metadata_props, *(output.metadata_props for output in node.outputs)):
                keys = [key for key in properties if key.startswith(_TRACES)]
                count += len(keys)
                for key in keys:
                    del properties[key]
    return count
