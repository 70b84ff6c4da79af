"""What a page may be asked for: every parameter of every URL, checked before anything is read."""

from __future__ import annotations

import types
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

MAX_TEXT = 512
MAX_PAGE = 100_000
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Page = Annotated[int, Field(ge=1, le=MAX_PAGE)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class RefusedError(Exception):
    """A request that gets no page: HTTP status, what is wrong and what to do."""

    def __init__(self, status: int, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.status, self.what, self.hint = status, what, hint


def not_found(what: str, hint: str = "") -> RefusedError:
    """Return the answer to a name that is not there."""
    return RefusedError(404, what, hint)


class Asked(BaseModel):
    """No parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Asked)


class Overview(Asked):
    """The front page."""


class Artifact(Asked):
    """One artifact, by its key in the run."""

    key: Text


class Users(Asked):
    """A list of users."""

    q: Text = ""
    left: Text = ""
    right: Text = ""
    page: Page = 1


class User(Asked):
    """One user; empty names mean the run's main method and its baseline."""

    id: Text
    method: Text = ""
    left: Text = ""
    right: Text = ""
    among: Text = ""
    request: Page = 1
    sort: Literal["", "label", "confidence", "left", "right", "move"] = ""
    history: Annotated[int, Field(ge=1, le=2000)] = 30
    anchors: Annotated[int, Field(ge=1, le=500)] = 10
    page: Page = 1


class Items(Asked):
    """A list of items."""

    q: Text = ""
    segment: Literal["", "head", "mid", "tail"] = ""
    sort: Literal["exposures", "id"] = "exposures"
    page: Page = 1


class Item(Asked):
    """One item."""

    id: Text
    page: Page = 1


class Sids(Asked):
    """One node of the codebook's tree: ``3.17`` is code 17 of level 2 under code 3."""

    prefix: Annotated[str, Field(max_length=200, pattern=r"^(\d{1,7}(\.\d{1,7})*)?$")] = ""
    sort: Literal["count", "code"] = "count"
    page: Page = 1


class Labels(Asked):
    """Some of the pseudo-labels of a method."""

    method: Text = ""
    user: Text = ""
    item: Text = ""
    title: Text = ""
    label_min: Share | None = None
    label_max: Share | None = None
    confidence_min: Amount | None = None
    confidence_max: Amount | None = None
    popularity: Annotated[int, Field(ge=1, le=10)] | None = None
    """Tenth, 1 the rarest."""
    confidence: Annotated[int, Field(ge=1, le=5)] | None = None
    """Fifth, 1 the least sure."""
    sort: Literal["", "label", "confidence", "relevance"] = ""
    order: Literal["highest", "lowest"] = "highest"
    page: Page = 1

    @property
    def filtered(self) -> bool:
        """Whether some rows are left out."""
        given = self.model_dump(exclude_defaults=True, exclude={"method", "sort", "order", "page"})
        return bool(set(given) - {"format"})


class Download(Labels):
    """All of some pseudo-labels, as a file."""

    format: Literal["csv", "parquet"] = "csv"


class Compare(Asked):
    """Methods and runs side by side."""

    pool: Text = ""
    metric: Text = ""
    against: Text = ""
    method: list[Text] = []


def parse(model: type[Model], params: QueryParams) -> Model:
    """Return what ``params`` ask for; an empty value counts as absent, as forms send it.

    Raises:
        RefusedError: 422, a parameter is unknown, given twice, or not what it must be.
    """
    values: dict[str, object] = {}
    for name in dict.fromkeys(params.keys()):
        given = [value for value in params.getlist(name) if value != ""]
        field = model.model_fields.get(name)
        if field is not None and _is_list(field.annotation):
            values[name] = given
        elif len(given) > 1:
            raise RefusedError(422, f"{name[:40]} is given {len(given)} times", "give it once")
        elif given or field is None:
            values[name] = given[0] if given else ""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        got = str(first.get("input"))[:80]
        hint = "known parameters: " + (", ".join(model.model_fields) or "none")
        raise RefusedError(422, f"{where}: {first['msg']}; got {got!r}", hint) from None


def _is_list(annotation: object) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_list(inner) for inner in get_args(annotation))
    return get_origin(annotation) is list
