"""MovieLens: 100K (raw `u.*` or RecBole's atomic files), 1M (`.dat`), and 20M / 25M / 32M (CSV).

All layouts give the same columns: user_id, item_id, rating, timestamp, release_year, genres (joined by "|"), and for
100K and 1M also age, gender, occupation, zip_code. The files about users and movies are found beside the ratings.
Ratings 4-5 are positive, 1-2 negative, 3 is dropped, as CTR work on MovieLens does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from embank.pipelines.data.sources.formats.base import Chunk, Format, Source, TextOptions
from embank.pipelines.data.sources.formats.derived import DerivedSource
from embank.pipelines.data.sources.formats.text import TextLayout, TextSource, read_header
from embank.tables.errors import DataError
from embank.tables.wording import listing

_RATING = ("user_id", "item_id", "rating", "timestamp")
_USER = ("age", "gender", "occupation", "zip_code")
_ITEM = ("release_year", "genres")
_FLAGS = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_YEAR = r"\((\d{4})\)\s*$"


@dataclass(frozen=True, kw_only=True)
class Side:
    """A file beside the ratings.

    Args:
        name: its file name; `*` stands for the stem of the ratings file.
        layout: how it is laid out.
        select: its columns to the features, with the key first.
    """

    name: str
    layout: TextLayout
    select: tuple[pl.Expr, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One published layout.

    Args:
        ratings: name (or `*` and suffix) of the ratings file.
        layout: how it is laid out.
        names: its columns in the order of user, item, rating, timestamp.
        renamed: what these are called here.
        users: the file about users, if the data set has one.
        items: the file about movies.
    """

    ratings: str
    layout: TextLayout
    names: tuple[str, ...] = _RATING
    renamed: tuple[str, ...] = _RATING
    users: Side | None
    items: Side

    @property
    def layout_of_rows(self) -> TextLayout:
        """The layout of a file with a header whose rows are to be scored: users and items are needed, no ratings."""
        return replace(self.layout, required=tuple(self.names[:2]))


def _year(title: str) -> pl.Expr:
    return pl.col(title).str.extract(_YEAR).alias("release_year")


def _genres_of_flags() -> pl.Expr:
    flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _FLAGS]
    return pl.concat_str(flags, separator="|", ignore_nulls=True).alias("genres")


def _dat(*columns: str) -> TextLayout:
    return TextLayout(separator="\t", columns=columns, latin1=True, substitute=(b"::", b"\t"))


def _typed(*names: str) -> TextLayout:
    return TextLayout(separator="\t", required=names)


_U_USER = TextLayout(separator="|", columns=("user_id", *_USER), latin1=True)
_U_ITEM = TextLayout(separator="|", columns=("item_id", "title", "date", "video", "url", *_FLAGS), latin1=True)
_ATOMIC_USER = ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")
_ATOMIC_ITEM = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
_ATOMIC = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
_CSV = ("userId", "movieId", "rating", "timestamp")

VARIANTS = (
    Variant(
        ratings="u.data",
        layout=TextLayout(separator="\t", columns=_RATING),
        users=Side(name="u.user", layout=_U_USER, select=tuple(map(pl.col, ("user_id", *_USER)))),
        items=Side(name="u.item", layout=_U_ITEM, select=(pl.col("item_id"), _year("title"), _genres_of_flags())),
    ),
    Variant(
        ratings="*.inter",
        layout=_typed(*_ATOMIC),
        names=_ATOMIC,
        users=Side(
            name="*.user",
            layout=_typed(*_ATOMIC_USER),
            select=tuple(
                pl.col(typed).alias(name) for typed, name in zip(_ATOMIC_USER, ("user_id", *_USER), strict=True)
            ),
        ),
        items=Side(
            name="*.item",
            layout=_typed(*_ATOMIC_ITEM),
            select=(
                pl.col("item_id:token").alias("item_id"),
                pl.col("release_year:token").alias("release_year"),
                pl.col("class:token_seq").str.replace_all(" ", "|").alias("genres"),
            ),
        ),
    ),
    Variant(
        ratings="ratings.dat",
        layout=_dat(*_RATING),
        users=Side(
            name="users.dat",
            layout=_dat("user_id", "gender", "age", "occupation", "zip_code"),
            select=tuple(map(pl.col, ("user_id", *_USER))),
        ),
        items=Side(
            name="movies.dat",
            layout=_dat("item_id", "title", "genres"),
            select=(pl.col("item_id"), _year("title"), pl.col("genres")),
        ),
    ),
    Variant(
        ratings="ratings.csv",
        layout=TextLayout(separator=",", quote='"', required=_CSV),
        names=_CSV,
        users=None,
        items=Side(
            name="movies.csv",
            layout=TextLayout(separator=",", quote='"', required=("movieId", "title", "genres")),
            select=(
                pl.col("movieId").alias("item_id"),
                _year("title"),
                pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres")).alias("genres"),
            ),
        ),
    ),
)


def open_files(paths: Sequence[Path], options: TextOptions) -> Source:
    """Open a MovieLens data set, given its folder, its ratings file, or all of its files.

    Raises:
        DataError: no ratings file is among the paths, or a file beside it is missing.
    """
    return _open(*_find(paths))


def open_rows(paths: Sequence[Path], options: TextOptions) -> Source:
    """The same to score rows: a ratings file with a header needs no ratings."""
    variant, ratings = _find(paths)
    if variant.layout.required:
        header = read_header(ratings, variant.layout_of_rows)
        given = () if header is None else header.names
        present = {raw: name for raw, name in zip(variant.names, _RATING, strict=True) if raw in given}
        variant = replace(variant, layout=variant.layout_of_rows, names=tuple(present), renamed=tuple(present.values()))
    return _open(variant, ratings)


def _open(variant: Variant, ratings: Path) -> Source:
    sides = [side for side in (variant.items, variant.users) if side is not None]
    items = _side(variant.items, ratings)
    users = _side(variant.users, ratings) if variant.users else None
    features = [*(_USER if users is not None else ()), "release_year"]
    default = {
        "label": {"column": "rating", "positive": ">= 4", "negative": "<= 2"},
        "categorical": ["user_id", "item_id", *features],
        "multivalued": {"genres": "|"},
        "split": {"by": "hash", "key": ["user_id", "item_id"], "ratios": [0.8, 0.1, 0.1], "seed": 0},
        "group": "user_id",
    }
    return DerivedSource(
        TextSource([ratings], variant.layout),
        columns=(*variant.renamed, *features, "genres"),
        needs=lambda columns: variant.names,
        derive=_joiner(variant, users, items),
        default=default,
        beside=[_beside(side, ratings) for side in sides],
    )


def _joiner(
    variant: Variant, users: pl.DataFrame | None, items: pl.DataFrame
) -> Callable[[Chunk, Sequence[str]], Iterator[Chunk]]:
    def derive(chunk: Chunk, columns: Sequence[str]) -> Iterator[Chunk]:
        frame = chunk.frame.rename(dict(zip(variant.names, variant.renamed, strict=True)))
        if users is not None:
            frame = frame.join(users, on="user_id", how="left", maintain_order="left")
        frame = frame.join(items, on="item_id", how="left", maintain_order="left")
        yield Chunk(frame=frame.select(columns), where=chunk.where, num_bytes=chunk.num_bytes)

    return derive


def _find(paths: Sequence[Path]) -> tuple[Variant, Path]:
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    found: dict[str, tuple[Variant, Path]] = {}
    for variant in VARIANTS:
        for file in files:
            if file.match(variant.ratings) and (file.exists() or not file.parent.is_dir()):
                found.setdefault(os.path.realpath(file), (variant, file))
    if len(found) > 1:
        shown = listing([str(file) for _, file in found.values()])
        raise DataError(
            f"there are {len(found)} MovieLens ratings files: {shown}. Name one of them with --input, or "
            "prepare each by itself"
        )
    if found:
        return next(iter(found.values()))
    for file in files:
        if not file.exists():
            raise DataError(f"there is no file {file}. Check --input.")
    known = ", ".join(variant.ratings for variant in VARIANTS)
    given = ", ".join(str(path) for path in paths) or "nothing"
    raise DataError(
        f"no MovieLens ratings file among {given}. Give the unpacked folder, or a file called {known}; a file of "
        "another layout needs --format (csv, parquet, ...)"
    )


def _beside(side: Side, ratings: Path) -> Path:
    return ratings.with_name(side.name.replace("*", ratings.stem))


def _side(side: Side, ratings: Path) -> pl.DataFrame:
    path = _beside(side, ratings)
    if not path.exists():
        raise DataError(f"{ratings} needs {path.name} beside it, and there is none. Unpack the whole data set.")
    frame = TextSource([path], side.layout).frame().select(side.select)
    key = frame.columns[0]
    if frame[key].is_duplicated().any():
        twice = frame.filter(frame[key].is_duplicated())[key][0]
        raise DataError(f"{path}: {key} {twice!r} stands there twice. Delete one of the lines.")
    return frame


FORMAT = Format(
    name="movielens",
    summary="MovieLens 100K, 1M, 20M, 25M, 32M: the unpacked folder or its ratings file",
    open=open_files,
    open_rows=open_rows,
)
