"""The vocabularies of a collection as its `state_dict` has them: those of the same tables, all of them or none."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from embank.tables.collections.named import NamedModules, state_name
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.streaming.base import IdVocabulary
from embank.tables.wording import nearest_or_all

_STATE = "._extra_state"
"""What a vocabulary's name ends with in a `state_dict`."""


class Vocabularies(NamedModules):
    """Vocabularies by table."""

    def of(self, table: str) -> IdVocabulary:
        """The vocabulary of a table.

        Raises:
            ConfigError: it has none.
        """
        if table not in self:
            others = nearest_or_all(table, self.keys(), label="those with one are") if len(self) else "no table has one"
            raise ConfigError(f"table '{table}' has no vocabulary; {others}")
        found = self.named(table)
        assert isinstance(found, IdVocabulary)
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """What `load_state_dict` calls before it loads the vocabularies one by one."""
        self.refuse_bad_states(state_dict, prefix=prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module.

        Raises:
            CheckpointError: the vocabularies are of other tables, and `strict`; or one can't be loaded.
        """
        if strict:
            self.refuse_other_tables(state_dict, prefix="")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def refuse_other_tables(self, state_dict: Mapping[str, Any], *, prefix: str) -> None:
        """Raises CheckpointError if a `state_dict` has vocabularies of other tables.

        Args:
            state_dict: perhaps that of a larger module.
            prefix: of the vocabularies' names in it.
        """
        names = [name for name in state_dict if name.startswith(prefix) and name.endswith(_STATE)]
        saved = [unquote(name.removeprefix(prefix).removesuffix(_STATE)) for name in names]
        if set(saved) != set(self.keys()):
            raise CheckpointError(
                f"the state_dict has vocabularies of {_tables(saved)}, and here they are of {_tables(self.keys())}; "
                "make the StreamingCollection with the vocabularies that were saved"
            )

    def refuse_bad_states(self, state_dict: Mapping[str, Any], *, prefix: str) -> None:
        """Raises CheckpointError, before anything is loaded, if one of the vocabularies here can't load what a
        `state_dict` has of it; the arguments are those of `refuse_other_tables`."""
        for table in self.keys():
            name = f"{prefix}{state_name(table)}{_STATE}"
            if name in state_dict:
                self.of(table).refuse_bad_state(state_dict[name])


def _tables(names: list[str]) -> str:
    return f"the tables {', '.join(sorted(names))}" if names else "no table"
