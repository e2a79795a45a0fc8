"""Compression methods, one file each, on the interface of `embank.tables`.

Names are imported when they are first used: who looks up a bundle's tables needs the module of their method alone.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import lazy_imports, public_name

if TYPE_CHECKING:
    from embank.compression.alignment import Alignment, fit_alignment
    from embank.compression.budget.solver import share
    from embank.compression.build import METHODS, Packed, Table, build_table
    from embank.compression.fitting.means import Means
    from embank.compression.multiplexing.growth import with_doubled_rows, with_lookups
    from embank.compression.multiplexing.specs import advise, unified_specs

__all__ = [
    "METHODS",
    "Alignment",
    "Means",
    "Packed",
    "Table",
    "advise",
    "build_table",
    "fit_alignment",
    "share",
    "unified_specs",
    "with_doubled_rows",
    "with_lookups",
]

_HOME = lazy_imports(__file__)


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
