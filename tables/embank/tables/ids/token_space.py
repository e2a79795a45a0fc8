"""Ids of tokens without a vocabulary: where they lie, and by which version of the hash they were made.

Apart from the hash itself (`embank.tables.ids.token_hash`), which needs the libraries that hold columns: who looks ids
up needs these facts alone.
"""

from embank.tables.errors import EmbankError

TOKEN_HASH_VERSION = 1
"""Stored with data, checkpoints and bundles whose ids were made here; a different version must be refused on load."""

NUM_TOKEN_IDS = 2**63
"""Ids lie in 0 .. 2**63 - 1; the `num_embeddings` of a table without a vocabulary."""

MISSING_ID = 5_643_126_521_301_297_769
"""The id of null."""

INTEGER_SALT = 4_250_892_226_080_748_609
"""Tells integers from texts."""


def refuse_other_token_hash(version: int | None, *, what: str, error: type[EmbankError]) -> None:
    """Refuses what was made with other ids than these.

    Args:
        version: that was stored with it; None where nothing in it depends on token ids.
        what: subject of the message, "bundle 'b'".
        error: class of the error.

    Raises:
        error: names both versions.
    """
    if version not in (None, TOKEN_HASH_VERSION):
        raise error(
            f"{what} has ids of tokens by version {version} of the token hash; this embank has version "
            f"{TOKEN_HASH_VERSION}, which gives tokens other ids. Use the embank that made it, or prepare the data and "
            "train again"
        )
