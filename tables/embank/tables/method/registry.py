"""Where methods announce themselves: by an entry point of their package, or in this process."""

from embank.tables.errors import ConfigError
from embank.tables.method.base import Method
from embank.tables.method.casts import own_defaults
from embank.tables.method.trial import refuse_no_method, refuse_unsound
from embank.tables.registry import Registry
from embank.tables.specs import TableSpec

METHODS: Registry[Method] = Registry("method", Method, group="embank.methods")


def register_method(name: str, method: type[Method]) -> None:
    """Adds a method of this process, for notebooks and trials; a package announces its methods by an entry point.

    Raises:
        ConfigError: it is no method, or the name is taken by another class.

    Example:
        >>> register_method("hash", Spine)
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: method 'hash' is to be embank.tables.method.base:Spine, which is no subclass
        of embank.tables.Method
    """
    METHODS.add(name, method)


def registered_methods() -> list[str]:
    """Names of all methods: those of installed packages (not yet imported) and those of this process.

    Example:
        >>> sorted(registered_methods())[:3]
        ['adapt', 'alpt', 'autodim']
    """
    return METHODS.names()


def method_class(name: str) -> type[Method]:
    """The class of a registered method.

    Raises:
        ConfigError: nothing of this name is registered; the message has the nearest one.

    Example:
        >>> method_class("hash").Config(num_rows=100)
        HashConfig(num_rows=100)
        >>> method_class("hsah")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: there is no method 'hsah'; did you mean 'hash'?
    """
    return METHODS.find(name)


def build_method(spec: TableSpec, *, seed: int = 0) -> Method:
    """The method of a spec, ready to address and combine.

    Args:
        spec: of the table.
        seed: initial values of dense parameters depend on it and on the table's name alone; no global generator moves.

    Raises:
        ConfigError: unknown method, options of another method, a table without a vocabulary that needs one, or a method
            that does not look up what it should: it is tried on some ids.
        BudgetError: the budget is below the method's floor.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"], method="hash", budget=0.1
        ... )
        >>> hashed = build_method(spec)
        >>> [(table.name, table.num_embeddings, table.embedding_dim) for table in hashed.physical]
        [('item', 99, 8)]
    """
    try:
        method = method_class(spec.method)
    except ConfigError as error:
        raise ConfigError(f"table '{spec.name}': {error}") from error
    if not spec.has_vocabulary:
        _refuse_no_vocabulary(spec, method)
    refuse_no_method(method, spec)
    with own_defaults():
        built = method(spec, seed=seed)
        refuse_unsound(built, spec)
    return built


def _refuse_no_vocabulary(spec: TableSpec, method: type[Method]) -> None:
    why = f"table '{spec.name}' has no vocabulary (its ids are hashes of tokens)"
    if not method.traits.takes_token_ids:
        able = [name for name in registered_methods() if method_class(name).traits.takes_token_ids]
        raise ConfigError(
            f"{why}, but method '{spec.method}' needs one, for the number of ids, their counts or their order. Use a "
            f"method that hashes ids ({', '.join(able)}) with a number of rows, or prepare the column with a vocabulary"
        )
    if spec.budget is not None:
        raise ConfigError(
            f"{why}, so there is no plain table that its budget {spec.budget} could be a share of; give the number of "
            "rows in its place"
        )
