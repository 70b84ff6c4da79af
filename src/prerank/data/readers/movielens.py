"""MovieLens: the ``::`` layout of 100K-10M (ratings.dat ...) and the csv layout of `latest`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.data.assemble import MULTI_VALUED, Logs
from prerank.data.config import RatingsConfig
from prerank.data.tables import (
    as_ids,
    as_lists,
    as_numbers,
    as_time,
    complain,
    no_repeats,
    read_frame,
)
from prerank.errors import DataError

RATINGS = ("user", "item", "rating", "time")
NO_GENRE = "(no genres listed)"
MOVIES = ("item", "title", "genres")
USERS = ("user", "gender", "age", "occupation", "zip")
CSV_NAMES = {"userId": "user", "movieId": "item", "timestamp": "time"}


def read_movielens(path: Path, config: RatingsConfig) -> Logs:
    """Read ratings and movies; a rating is an exposure, one from the threshold on a click."""
    dat = (path / "ratings.dat").is_file()
    ratings_file = path / ("ratings.dat" if dat else "ratings.csv")
    movies_file = path / ("movies.dat" if dat else "movies.csv")
    ratings, movies = _read(ratings_file, RATINGS), _read(movies_file, MOVIES)
    movies = movies.with_columns(as_ids(movies["item"], movies_file))
    no_repeats(movies["item"], movies_file, "a movie id")
    complain(
        ratings["item"],
        ~ratings["item"].is_in(movies["item"].implode()),
        "a rating names an unknown movie",
        ratings_file,
        f"an id of {movies_file.name}",
    )
    exposures = pl.DataFrame(
        {
            "user": as_ids(ratings["user"], ratings_file),
            "item": as_ids(ratings["item"], ratings_file),
            "time": as_time(ratings["time"], ratings_file, "s"),
            "click": (as_numbers(ratings["rating"], ratings_file) >= config.threshold).cast(
                pl.Int8
            ),
        }
    )
    genres = pl.col("genres").str.replace_all("|", " ", literal=True)
    users_file = path / "users.dat"
    return Logs(
        name="movielens",
        time_unit="ms",
        items=movies.select(
            "item",
            "title",
            pl.concat_str("title", genres, separator=" ", ignore_nulls=True).alias("text"),
            as_lists(movies["genres"].replace(NO_GENRE, None), movies_file, "|").alias(
                f"{MULTI_VALUED}genres"
            ),
            year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Float64),
        ).rename({"year": "n:year"}),
        users=_users(users_file) if users_file.is_file() else None,
        exposures=exposures,
        notes=(
            f"a rated movie is an exposure, a rating of {config.threshold:g} or more a click",
            "users chose what they rated: this is no log of what was shown",
        ),
    )


def _users(file: Path) -> pl.DataFrame:
    rows = _read(file, USERS)
    no_repeats(rows["user"], file, "a user id")
    return rows.select(
        "user", *(pl.col(c).alias(f"c:{c}") for c in ("gender", "age", "occupation"))
    )


def _read(file: Path, names: tuple[str, ...]) -> pl.DataFrame:
    """Read a file of either layout as text columns ``names``."""
    if file.suffix == ".csv":
        frame = read_frame(file).rename(CSV_NAMES, strict=False)
        missing = [n for n in names if n not in frame.columns]
        if missing:
            raise DataError(
                f"column `{missing[0]}` is missing", where=str(file), got=", ".join(frame.columns)
            )
        return frame.select(names)
    if not file.is_file():
        raise DataError("the file is not there", where=str(file), hint="check `prepare.path`")
    # The .dat files are separated by two characters. Lines end at \n alone: a title may hold
    # what `splitlines` takes for an end, too, such as the character 0x85.
    text = _decoded(file).removesuffix("\n")
    lines = pl.Series("line", text.split("\n") if text else [], pl.String).str.strip_suffix("\r")
    fields = lines.str.split("::")
    wrong = fields.list.len() != len(names)
    if not len(lines) or wrong.any():
        row = int(wrong.arg_max() or 0) + 1
        raise DataError(
            "a line has another number of fields",
            where=f"{file}, row {row}",
            must="::".join(names),
            got=lines[row - 1] if len(lines) else "no rows",
        )
    return pl.DataFrame({name: fields.list.get(n) for n, name in enumerate(names)})


def _decoded(file: Path) -> str:
    """Return the text of a file in UTF-8 or, as the older archives are, in Latin-1."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
