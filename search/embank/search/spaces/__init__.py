"""Spaces: what a search chooses from, and the exact serving bytes of each choice.

space = DimensionSpace(specs, widths=4, row_levels=1)      # how wide, how long; specs are the plain tables
space = MethodSpace(specs, methods=["full", "hash"])       # which method stores each, how large, in which codec
space = UnifiedSpace(specs, rows=[1000, 4000])             # one table for all features
space.parameters                                           # {"width.user": Parameter(values=(4, 8, 16)), ...}
candidate = {"width.user": 8, "width.item": 4}             # what an objective gets
space.nbytes(candidate), space.allowed_nbytes(0.2)         # serving bytes; bytes of a budget
space.specs(candidate)                                     # tables for a TableCollection
space.shapes(candidate)                                    # {"user": Shape(rows=100, width=8)}: a supernet's masks
space.uniform(nbytes)                                      # the candidate that any search has to beat
space.encode(candidate) <-> space.decode(genes)            # genes: what samplers breed
space.params(genes) <-> space.genes(trial.params)          # what an Optuna trial holds
"""

from embank.compression.budget.layout import CodecNbytes, Layout, fp32_nbytes, layout_of
from embank.search.spaces.base import Space
from embank.search.spaces.methods import MethodSpace
from embank.search.spaces.parameter import Candidate, Gene, Genes, Group, Parameter, Value
from embank.search.spaces.tables import DimensionSpace, Shape, TableSpace, widths_of
from embank.search.spaces.unified import UnifiedSpace

__all__ = [
    "Candidate",
    "CodecNbytes",
    "DimensionSpace",
    "Gene",
    "Genes",
    "Group",
    "Layout",
    "MethodSpace",
    "Parameter",
    "Shape",
    "Space",
    "TableSpace",
    "UnifiedSpace",
    "Value",
    "fp32_nbytes",
    "layout_of",
    "widths_of",
]
