"""Mistakes of authors of methods and codecs are refused where they are made: by name, with the value and a cure."""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from embank.tables import (
    Coded,
    Combined,
    ConfigError,
    Held,
    Method,
    Served,
    Spine,
    TableCollection,
    TableSpec,
    Traits,
    build_method,
    encode,
    method_class,
    option_class,
    own_table,
    pack_collection,
    pack_table,
    register_codec,
    register_method,
)
from embank.tables.method.registry import METHODS
from embank.tables.registry import Registry
from embank.tables.serving.codecs.registry import CODECS

pytestmark = pytest.mark.slow


@option_class
class Config:
    """Options: number of rows."""

    num_rows: int = 10


class Sound(Method):
    """Row `id mod num_rows`."""

    Config = Config
    held = Held(facts=("num_rows",))

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.num_rows: Any = self.options.num_rows
        self.factor: Any = (2.0,)
        self.physical = (own_table(spec, num_rows=self.num_rows),)

    def address(self, ids_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (ids_N % self.num_rows,)


@pytest.fixture(autouse=True)
def _own_names() -> Iterator[None]:
    kept = [(registry, dict(registry.local)) for registry in (METHODS, CODECS)]
    yield
    for registry, names in kept:
        registry.local.clear()
        registry.local.update(names)


def spec_of(**body: Any) -> TableSpec:
    """A table of a method that differs from a sound one."""
    cls = type("Tried", (Sound,), body)
    globals()["Tried"] = cls  # a bundle looks for spines there
    register_method("tried", cls)
    return TableSpec(name="item", num_embeddings=40, embedding_dim=8, feature_names=["item"], method="tried")


def ids() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=["item"], values=torch.tensor([3, 35, 7]), lengths=torch.tensor([2, 0, 1]))


def with_init(change: Callable[[Any], None]) -> Callable[..., None]:
    """A constructor that also makes a change."""

    def init(self: Any, spec: TableSpec, *, seed: int = 0) -> None:
        Sound.__init__(self, spec, seed=seed)
        change(self)

    return init


def test_a_sound_method_is_built_and_served() -> None:
    tables = TableCollection([spec_of()])
    assert torch.equal(pack_collection(tables)(ids()).values(), tables.eval()(ids()).values())


def narrow(method: Any) -> None:
    method.physical = (own_table(method.spec, num_rows=10, width=5),)


def no_rows(method: Any) -> None:
    method.physical = (own_table(method.spec, num_rows=0),)


MISTAKES = [
    ("the kernel's output is narrower", {"__init__": with_init(narrow)}, r"\[33, 5\] for 33 ids.*embedding_dim 8"),
    ("no rows", {"__init__": with_init(no_rows)}, "'item' of 0 rows x 8"),
    ("no table", {"__init__": with_init(lambda m: setattr(m, "physical", ()))}, "names 0 lookups"),
    ("another width", {"combine": lambda s, rows, side: rows[0][:, :5]}, r"\[33, 5\]"),
    ("another type", {"combine": lambda s, rows, side: rows[0].double()}, "float64"),
    ("nothing", {"combine": lambda s, rows, side: None}, r"nothing \(None\)"),
    ("a row less", {"combine": lambda s, rows, side: rows[0][:-1]}, r"\[32, 8\] for 33 ids"),
    ("no tuple", {"address": lambda s, ids: ids % 10}, "give a tuple"),
    ("floats", {"address": lambda s, ids: (ids / 4,)}, "float32"),
    ("another lookup", {"address": lambda s, ids: (ids % 10, ids % 10)}, "names 1 lookups"),
    ("an id less", {"address": lambda s, ids: (ids[:-1] % 10,)}, r"int64 \[32\] for 33 ids"),
    ("behind the rows", {"address": lambda s, ids: (ids,)}, "id 10 to row 10 of 'item', which has rows 0 to 9"),
    ("before the rows", {"address": lambda s, ids: (ids % 10 - 1,)}, "id 0 to row -1"),
    ("impure", {"address": lambda s, ids: (ids.remainder_(10),)}, "both must be pure"),
    ("it raises", {"address": lambda s, ids: (ids % s.options.rows,)}, "address fails for ids 0 to 39: AttributeErr"),
    ("a list beside", {"side": lambda s, ids: [1, 2]}, "side gives a list of 2"),
    ("too few beside", {"side": lambda s, ids: ids[:-1]}, r"side gives a tensor of int64 \[32\]"),
    ("a loss in evaluation", {"combine": lambda s, r, side: Combined(r[0], r[0].mean())}, "only `if self.training`"),
    (
        "not linear",
        {"traits": Traits(combines="linearly"), "combine": lambda s, r, side: r[0].square()},
        "not the sum of the combined rows",
    ),
    (
        "not side by side",
        {"traits": Traits(combines="side by side"), "combine": lambda s, r, side: 2 * r[0]},
        "summed rows is not the sum of the combined rows as they are",
    ),
    ("a side that is lost", {"traits": Traits(combines="linearly"), "side": lambda s, ids: ids}, "would not see"),
    ("not plain", {"traits": Traits(is_plain=True)}, r"\('item', 10, 8\).*of 40 rows x 8"),
    ("no super", {"__init__": lambda s, spec, *, seed=0: None}, r"does not call super\(\)"),
    ("no seed", {"__init__": lambda s, spec: None}, r"define __init__\(self, spec, \*, seed=0\)"),
    ("no options", {"Config": None}, "has no Config"),
]


@pytest.mark.parametrize(("body", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_refused_when_the_method_is_built(body: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)^table 'item': method 'tried'.*{words}"):
        build_method(spec_of(**body))


@pytest.mark.parametrize(
    ("traits", "loss", "words"),
    [
        (Traits(), torch.tensor(1.0), "give traits = Traits"),
        (Traits(adds_loss=True), torch.ones(3), r"a tensor of shape \[3\] to the loss"),
        (Traits(adds_loss=True), 0.5, "adds 0.5 to the loss"),
    ],
    ids=["not declared", "a vector", "a number"],
)
def test_a_loss_that_nobody_would_add_is_refused(traits: Traits, loss: Any, words: str) -> None:
    spec = spec_of(traits=traits, combine=lambda s, r, side: Combined(r[0], loss) if s.training else r[0])
    with pytest.raises(ConfigError, match=f"table 'item': method 'tried'.*{words}"):
        TableCollection([spec])(ids())


def test_widths_that_only_sum_up_are_refused() -> None:
    cls = type("Split", (Sound,), {"combine": lambda s, r, side: r[0][:, :7] if s.training else r[0]})
    register_method("split", cls)
    spec = TableSpec(name="item", num_embeddings=40, embedding_dim=8, feature_names=["item"], method="split")
    with pytest.raises(ConfigError, match=r"table 'item': method 'split'.*\[3, 7\].*embedding_dim 8"):
        TableCollection([spec])(ids())


def holding(**values: Any) -> Callable[..., None]:
    return with_init(lambda method: [setattr(method, name, value) for name, value in values.items()])


UNSERVED = [
    ("a fact that is not held", {"held": Held()}, "no attribute 'num_rows'.*a fact that `held` names"),
    ("a fact that is not there", {"held": Held(facts=("num_row",))}, "has no 'num_row', which its `held` names"),
    (
        "a tensor as a fact",
        {"__init__": holding(factor=torch.ones(8)), "held": Held(facts=("num_rows", "factor"))},
        "'factor' of Tried can't be saved as JSON",
    ),
    (
        "keys that become text",
        {"__init__": holding(factor={1: 2.0}), "held": Held(facts=("num_rows", "factor"))},
        r"\{1: 2.0\} and would come back from a bundle as \{'1': 2.0\}",
    ),
    (
        "a tensor that is an attribute",
        {"__init__": holding(factor=torch.ones(8)), "combine": lambda s, r, side: r[0] * s.factor},
        "a buffer or parameter",
    ),
    (
        "a submodule",
        {
            "__init__": with_init(lambda m: m.add_module("net", nn.Linear(8, 8))),
            "combine": lambda s, r, side: s.net(r[0]),
        },
        "no attribute 'net'",
    ),
    (
        "a lookup of no matrix",
        {"served": lambda s, rows: Served(spine=s, matrices=dict(rows), lookups=("itm",))},
        r"a matrix 'itm', and there are \['item'\]",
    ),
    ("rows of no table", {"served": lambda s, rows: Served.of_rows(rows["rows"], spine=s)}, "rows of 'rows'"),
    ("nothing", {"served": lambda s, rows: None}, "served gives a NoneType"),
    ("too few rows", {"served": lambda s, rows: Served.of_rows(rows["item"])}, "can't be looked up: IndexError"),
    ("half rows", {"served": lambda s, rows: Served.of_rows(rows["item"].half(), spine=s)}, "float16"),
    (
        "a spine from elsewhere",
        {"served": lambda s, rows: Served.of_rows(rows["item"].repeat(4, 1), spine=type("Far", (Spine,), {})())},
        r"\.Far is not named in the module of the method",
    ),
]


@pytest.mark.parametrize(("body", "words"), [m[1:] for m in UNSERVED], ids=[m[0] for m in UNSERVED])
def test_what_a_bundle_would_not_give_is_refused_when_it_is_packed(body: dict[str, Any], words: str) -> None:
    tables = TableCollection([spec_of(**body)])
    with pytest.raises(ConfigError, match=f"(?s)^table 'item': method 'tried'.*{words}"):
        pack_collection(tables)


def test_a_tuple_of_facts_is_served_as_it_is_loaded() -> None:
    body = {"held": Held(facts=("num_rows", "factor")), "combine": lambda s, rows, side: s.factor[0] * rows[0]}
    tables = TableCollection([spec_of(**body)])
    assert next(tables.packs().__iter__()).spine.factor == [2.0]
    assert torch.equal(pack_collection(tables)(ids()).values(), tables.eval()(ids()).values())


class Halves(Coded):
    """Rows in half precision."""

    def __init__(self, rows_RD: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RD.half())
        self.scale = torch.tensor(1.0)

    @classmethod
    def encode(cls, rows_RD: torch.Tensor) -> "Halves":
        return cls(rows_RD)

    def take(self, rows_N: torch.Tensor) -> torch.Tensor:
        return self.rows.index_select(0, rows_N).float()


def a_submodule(codec: Any, rows_RD: torch.Tensor) -> None:
    Coded.__init__(codec)
    codec.rows = nn.Module()
    codec.rows.register_buffer("halves", rows_RD.half())


def a_parameter(codec: Any, rows_RD: torch.Tensor) -> None:
    Coded.__init__(codec)
    codec.rows = nn.Parameter(rows_RD.half())


def an_attribute(codec: Any, rows_RD: torch.Tensor) -> None:
    Coded.__init__(codec)
    codec.rows = rows_RD.half()


CODEC_MISTAKES = [
    ("another type", {"take": lambda s, rows: s.rows[rows]}, r"codec 'tried': take gives torch.float16 \[0, 8\]"),
    ("one row for all", {"take": lambda s, rows: s.rows[rows[:1]].float()}, r"\[1, 8\] for 2 row ids"),
    ("other columns", {"take": lambda s, rows: s.rows[rows].float()[:, :4]}, r"\[0, 4\] for 0 row ids of.*width 8"),
    ("nothing", {"take": lambda s, rows: None}, "a NoneType for 0 row ids"),
    (
        "it raises",
        {"take": lambda s, rows: torch.stack([s.rows[i] for i in rows.tolist()])},
        r"fails for the row ids \[",
    ),
    ("no class method", {"encode": lambda s, rows: s}, "must be a class method"),
    ("no codec", {"encode": classmethod(lambda c, rows: rows.half())}, "encode gives a Tensor"),
    ("not to be made of rows", {"encode": Coded.__dict__["encode"]}, "codec 'tried' is made while its method trains"),
    ("a fact that is no JSON", {"held": Held(facts=("scale",))}, "'scale' of Tried can't be saved as JSON"),
    ("a fact that is not there", {"held": Held(facts=("scal",))}, "Tried has no 'scal'"),
    ("a fact that is not held", {"take": lambda s, rows: s.rows[rows].float() * s.scale}, "no attribute 'scale'"),
    (
        "a submodule",
        {"__init__": a_submodule, "take": lambda s, rows: s.rows.halves[rows].float()},
        "'rows.halves' of Tried is a submodule's",
    ),
    ("a parameter", {"__init__": a_parameter}, "'rows' of Tried is a parameter"),
    ("an attribute", {"__init__": an_attribute}, "no attribute 'rows'"),
]


@pytest.mark.parametrize(("body", "words"), [m[1:] for m in CODEC_MISTAKES], ids=[m[0] for m in CODEC_MISTAKES])
def test_a_mistake_of_a_codec_is_refused_when_a_table_is_packed(body: dict[str, Any], words: str) -> None:
    register_codec("tried", type("Tried", (Halves,), body))
    spec = TableSpec(name="item", num_embeddings=40, embedding_dim=8, feature_names=["item"])
    rows = TableCollection([spec]).weights()
    with pytest.raises(ConfigError, match=f"(?s)^table 'item': method 'full': .*{words}"):
        pack_table(build_method(spec), rows, codec="tried")


def test_a_codec_that_is_not_registered_is_refused_with_its_table() -> None:
    spec = spec_of(served=lambda s, rows: Served.of_rows(Halves.encode(rows["item"]), spine=s))
    with pytest.raises(ConfigError, match=r"table 'item'.*Halves is not registered.*call register_codec"):
        pack_collection(TableCollection([spec]))


def test_names_and_classes_that_can_not_be_registered() -> None:
    with pytest.raises(ConfigError, match="'' is no name of a method; give a text"):
        register_method("", Sound)
    with pytest.raises(ConfigError, match="5 is no name of a codec"):
        register_codec(5, Halves)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="codec 'bare' .* does not define take; define it"):
        register_codec("bare", type("Bare", (Coded,), {}))


def test_a_package_that_can_not_be_imported_is_named_and_hinders_no_other() -> None:
    registry: Registry[Coded] = Registry("codec", Coded, group="embank.codecs")
    registry.installed["aaa"] = EntryPoint(name="aaa", value="no_such_package:Codec", group="embank.codecs")
    with pytest.raises(
        ConfigError, match=r"codec 'aaa' \(no_such_package:Codec\) can't be imported.*remove the package"
    ):
        registry.find("aaa")
    assert registry.name_of(type(encode(torch.ones(2, 2)))) == "fp32"


def test_packing_within_autocast_serves_the_same_rows() -> None:
    spec = TableSpec(
        name="item", num_embeddings=40, embedding_dim=8, feature_names=["item"], method="autodim", budget=0.6
    )
    tables = TableCollection([spec])
    plain = tables.packs()[0].lookup(torch.arange(40))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the projection of its rows is a matrix product
        packed = tables.packs()[0]
    assert torch.equal(packed.lookup(torch.arange(40)), plain)


def test_a_trial_moves_neither_generators_nor_statistics() -> None:
    spec = TableSpec(name="item", num_embeddings=40, embedding_dim=8, feature_names=["item"], method="dhe", budget=0.9)
    before = torch.get_rng_state()
    built, plain = build_method(spec), method_class("dhe")(spec)
    assert torch.equal(before, torch.get_rng_state())
    assert built.training
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), plain.state_dict().values(), strict=True))
