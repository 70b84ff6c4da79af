"""Small things every page needs: plain values, pages of a list, moments."""

from __future__ import annotations

import math
import time
from typing import Any

from prerank.artifacts import Features
from prerank.inspection.asked import not_found
from prerank.inspection.opened import OpenedRun

PAGE_ROWS = 50


def plain(value: Any) -> float | None:
    """Return a number as JSON knows it: None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None


def pager(n: int, page: int, rows: int = PAGE_ROWS) -> dict[str, int]:
    """Return where a page of a list of ``n`` begins and how many there are; 404 beyond them."""
    pages = max(1, -(-n // rows))
    if page > pages:
        raise not_found(f"there is no page {page}", f"the last one is {pages}")
    start = (page - 1) * rows
    return {"page": page, "pages": pages, "n": n, "start": start, "stop": min(n, start + rows)}


def moment(value: int, unit: str) -> str:
    """Return a time as text, empty where the data has none."""
    if unit == "none":
        return ""
    if unit == "order":
        return f"no {value}"
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(value / 1000))


def item_of(run: OpenedRun, item: int) -> dict[str, Any]:
    """Return an item's id and title."""
    data = run.dataset
    return {"id": str(data.items.ids[item]), "title": str(data.catalog.title[item])}


def sid_of(run: OpenedRun, item: int) -> str:
    """Return an item's semantic ID as text, empty before tokenize."""
    if "semantic_ids" not in run.artifacts:
        return ""
    return ".".join(map(str, run.semantic_ids.codes[item].tolist()))


def features_of(table: Features, which: int) -> dict[str, Any]:
    """Return what a feature table says of one user or item: name -> value, None or list."""
    found: dict[str, Any] = {}
    for name, codes in table.categorical.items():
        code = int(codes[which])
        found[name] = table.categories[name][code] if code >= 0 else None
    for name, values in table.numeric.items():
        found[name] = plain(values[which])
    for name, lists in table.lists.items():
        codes = lists.codes[lists.offsets[which] : lists.offsets[which + 1]]
        found[name] = [table.categories[name][code] for code in codes.tolist()]
    return found


def user_index(run: OpenedRun, user: str) -> int:
    """Return the index of a user id; 404 if nobody has it."""
    index = int(run.dataset.users.lookup([user])[0])
    if index < 0:
        raise not_found(f"nobody has the id {user[:80]!r}", "search the users by how ids begin")
    return index


def item_index(run: OpenedRun, item: str) -> int:
    """Return the index of an item id; 404 if no item has it."""
    index = int(run.dataset.items.lookup([item])[0])
    if index < 0:
        raise not_found(f"no item has the id {item[:80]!r}", "search the items by title")
    return index
