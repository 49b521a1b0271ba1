"""Passes over an ``onnx_ir.Model``, in place, one a file; each returns how many changes it made.

Every pass keeps what the model computes, up to the rounding of float32, goes into If/Loop/Scan bodies, and never
changes a tensor that another node reads. What each of them needs says the list in ``graph.prepare``.

Sorting and inlining are onnx_ir's own. Its other common passes do less than is needed here: removing initializers from
inputs takes them from bodies too, whose inputs go by position; removing unused nodes leaves constants of bodies, and
what the bodies of removed nodes read; lifting constants does not look whether the name is free; fixing names renames
what might keep its name; eliminating Identity renames values of outer graphs and outputs that have a name already.
"""
