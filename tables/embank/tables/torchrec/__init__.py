"""TorchRec's collections under their own names and with their own arguments: change the import, and nothing else.

    from embank.tables.torchrec import EmbeddingBagCollection, EmbeddingCollection

Rows are parameters of the model until they get an optimizer for the backward pass (`apply_optimizer_in_backward`,
`fuse_embedding_optimizer`, or `optimizer=`), as in TorchRec. `method=` and `budget=` make the tables small.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import lazy_imports, public_name

if TYPE_CHECKING:
    from embank.tables.torchrec.drop_in import (
        EmbeddingBagCollection,
        EmbeddingCollection,
        FusedEmbeddingBagCollection,
        fuse_embedding_optimizer,
    )

__all__ = [
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "FusedEmbeddingBagCollection",
    "fuse_embedding_optimizer",
]

_HOME = lazy_imports(__file__)


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
