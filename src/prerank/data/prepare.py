"""prepare: logs of any kind -> Dataset."""

from __future__ import annotations

from pathlib import Path

from prerank.artifacts import Dataset
from prerank.data.assemble import Logs, assemble
from prerank.data.config import PrepareConfig
from prerank.errors import ConfigError, DataError


def prepare(config: PrepareConfig, seed: int) -> Dataset:
    """Read the source and return the Dataset that every other stage reads.

    Args:
        config: which source, and its settings.
        seed: root seed of the simulated world, of random splits and of sampled negatives.

    Raises:
        ConfigError: the path is missing or an option does not fit.
        DataError: a table, a column or a row is wrong; the message names it.
    """
    if config.source == "world":
        from prerank.data.world import simulate

        return simulate(config.world, seed)
    if not config.path:
        raise ConfigError(
            "no folder given", where="prepare.path", must=f"the folder of the {config.source} files"
        )
    path = Path(config.path).expanduser()
    if not path.is_dir():
        raise DataError("the folder is not there", where=str(path), must="a folder")
    logs = read(config, path, seed)
    return assemble(logs, config.split, config.pools, seed)


def read(config: PrepareConfig, path: Path, seed: int) -> Logs:
    """Read the files of ``config.source`` in the folder ``path``."""
    match config.source:
        case "logs":
            from prerank.data.readers.logs import read_logs

            return read_logs(path, config.logs, config.split)
        case "games":
            from prerank.data.readers.games import read_games

            return read_games(path, config.games, config.pools)
        case "anime":
            from prerank.data.readers.anime import read_anime

            return read_anime(path, config.anime, seed)
        case "kuairand":
            from prerank.data.readers.kuairand import read_kuairand

            return read_kuairand(path, config.kuairand)
        case "recbole":
            from prerank.data.readers.recbole import read_recbole

            return read_recbole(path, config.ratings)
        case "movielens":
            from prerank.data.readers.movielens import read_movielens

            return read_movielens(path, config.ratings)
        case "mind":
            from prerank.data.readers.mind import read_mind

            return read_mind(path)
        case "recflow":
            from prerank.data.readers.recflow import read_recflow

            return read_recflow(path, config.recflow)
        case "taobao-mm":
            from prerank.data.readers.taobao_mm import read_taobao_mm

            return read_taobao_mm(path, config.taobao_mm, config.split, seed)
        case "world":
            raise ConfigError("the world has no files", where="prepare.source")
