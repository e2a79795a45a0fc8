"""The Anime CTR task: explicit MyAnimeList ratings as clicks (rating >= 8), with a multi-valued genre.

    python benchmarks/tasks/anime.py anime.zip runs/tasks/anime
    embank prepare --format parquet --input runs/tasks/anime/anime.parquet \
        --config runs/tasks/anime/columns.yaml --out runs/data/anime

Source: `Processed Datasets/Anime` of GitHub caserec/Datasets-for-Recommender-Systems (419,943 ratings, 4,714 users,
7,157 items). The zip stays where it is: nothing of it is committed. The item's average rating is left out, because it
holds the labels of the test rows.
"""

import argparse
import io
import zipfile
from pathlib import Path

import polars as pl

COLUMNS = """\
label: {column: rating, positive: ">= 8", negative: "< 8"}
categorical: [user, item, type, episodes, members]
multivalued: {genre: "|"}
split: {by: hash, key: [user, item], ratios: [0.8, 0.1, 0.1], seed: 0}
min_count: 1
group: user
"""

EPISODE_BUCKETS = (1, 2, 6, 11, 13, 26, 52)  # upper ends, inclusive: single, double, ..., one, two, four seasons


def read_table(archive: zipfile.ZipFile, name: str) -> pl.DataFrame:
    """One tab-separated file with a header, wherever it lies in the archive; titles may hold quotes, so none are
    parsed."""
    members = [m for m in archive.namelist() if m.rsplit("/", 1)[-1] == name]
    if len(members) != 1:
        raise SystemExit(
            f"{archive.filename} has {len(members)} files named {name}; give the Anime archive of caserec."
        )
    return pl.read_csv(io.BytesIO(archive.read(members[0])), separator="\t", quote_char=None, infer_schema_length=None)


def item_features(info: pl.DataFrame) -> pl.DataFrame:
    """Item id and its features as strings; `genre` joined with `|`, counts as buckets."""
    return info.select(
        pl.col("anime_ids").alias("Anime_ID"),
        pl.col("genre").fill_null("").str.replace_all(", ", "|", literal=True),
        pl.col("type"),
        pl.sum_horizontal(pl.col("episodes") > end for end in EPISODE_BUCKETS).cast(pl.String).alias("episodes"),
        pl.col("members").log(2).floor().cast(pl.Int64).cast(pl.String),
    )


def build(archive: Path) -> pl.DataFrame:
    with zipfile.ZipFile(archive) as opened:
        ratings = read_table(opened, "anime_ratings.dat")
        info = read_table(opened, "anime_info.dat")
    joined = ratings.join(item_features(info), on="Anime_ID", how="left", maintain_order="left")
    return joined.rename({"User_ID": "user", "Anime_ID": "item", "Feedback": "rating"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="anime.zip")
    parser.add_argument("out", type=Path, help="folder for anime.parquet and columns.yaml")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = build(args.archive)
    table.write_parquet(args.out / "anime.parquet")
    (args.out / "columns.yaml").write_text(COLUMNS)
    positive = (table["rating"] >= 8).mean()
    print(f"{args.out}/anime.parquet: {table.height:,} rows, {positive:.1%} positive; columns.yaml beside it")


if __name__ == "__main__":
    main()
