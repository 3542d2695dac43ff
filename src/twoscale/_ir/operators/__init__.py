"""The operators, one module per family.

Each module has everything that defines its operators, except the code of a particular executor or file format: the
float node, the integer layer, the number of inputs, the shape rule, the conditions and bounds that are checked when a
network is made, and the NumPy arithmetic of the reference. ``twoscale._ir.float_graph`` and ``twoscale._ir.layers``
collect the classes; equation numbers are those of docs/arithmetic.md.
"""
