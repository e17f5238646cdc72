"""The schema of a source, merged from all its files. Knows no formats and no settings.

A column that a file lacks is null in its rows; each file has the column of texts, that of images, or both. Types are
unified by Arrow's permissive promotion (integers and floats widen, null takes any type); scalar types that cannot be
unified become text. Ids are integers if they are in every file, else text: integral floats are integers, UUIDs text.
"""

from collections.abc import Callable, Iterable

import pyarrow as pa

from nestling._util.spelling import nearest
from nestling.bulk.image_files import PARTS
from nestling.bulk.rows import UUID_BYTES, Columns, Survey, Wanted, ascii_only, quoted
from nestling.errors import FileFormatError, UsageError

NO_IDS = "none"
"""Value of `id_column` for no id column: ids are `file#row`."""
DEFAULT_ID = "id"


class Schemas:
    """Merges the files' own types, file by file. `id_column` None takes `id` where the source has it."""

    def __init__(self, *, text: str | None, image: str | None, id_column: str | None, keep: tuple[str, ...]) -> None:
        self._given = id_column not in (None, NO_IDS)
        self.wanted = Wanted(text, None if id_column == NO_IDS else id_column or DEFAULT_ID, keep, image)
        self._inputs = {param: name for param, name in (("text_column", text), ("image_column", image)) if name}
        self._seen: set[str] = set()
        self._kept: dict[str, pa.DataType] = {}
        self._ids: set[str] = set()
        self._with_id: list[str] = []
        self._without_id: list[str] = []
        self._first: tuple[str, tuple[str, ...]] | None = None

    def add(self, name: str, survey: Survey) -> None:
        """Add a file; FileFormatError, without any effect, when its types do not fit the other files'."""
        types = {field.name: field.type for field in survey.schema}
        if not survey.images:
            self._check_inputs(name, types, survey.names)
        kept = {one: self._merged(name, one, types[one]) for one in self.wanted.keep if one in types}
        if self.wanted.id and self.wanted.id in types:
            self._ids |= _id_kinds(name, self.wanted.id, types[self.wanted.id])
        (self._with_id if self.wanted.id in types else self._without_id).append(name)
        self._kept |= kept
        self._first = self._first or (name, survey.names)

    def columns(self) -> Columns:
        """The columns of all added files; UsageError for a wanted column that none of them has."""
        assert self._first is not None, "a source without files"
        for param, one in self._inputs.items():
            if self._seen and one not in self._seen:
                raise self._missing(param, one)
        for one in self.wanted.keep:
            if one not in self._kept:
                raise self._missing("keep", one)
        kept = pa.schema([pa.field(one, _stored(self._kept[one])) for one in self.wanted.keep])
        found = self._id_column()
        id_type = self._id_type() if found else pa.string()
        return Columns(self.wanted.text, found, id_type, kept, self.wanted.image)

    def _check_inputs(self, name: str, types: dict[str, pa.DataType], names: tuple[str, ...]) -> None:
        """Check the columns to embed: of texts, of images, or both."""
        for param, (fits, expected) in _EXPECTED.items():
            column = self._inputs.get(param)
            if column in types and not fits(plain(types[column])):
                raise FileFormatError(
                    f"{name}: column {column!r} is {types[column]}, expected {expected}; {param} names another"
                )
        there = [column for column in self._inputs.values() if column in types]
        if not there:
            [(param, column), *_] = self._inputs.items()
            if self._first is None:
                raise _no_column(param, column, name, names)
            raise FileFormatError(f"{name}: no column {column!r}; it has {quoted(names)}")
        self._seen.update(there)

    def _merged(self, name: str, column: str, kind: pa.DataType) -> pa.DataType:
        new = plain(kind)
        try:
            return _unified(self._kept.get(column, new), new)
        except pa.ArrowException:
            raise FileFormatError(
                f"{name}: column {ascii_only(column)} is {kind}, {self._kept[column]} in the files before it"
            ) from None

    def _id_column(self) -> str | None:
        if self._given and not self._with_id:
            assert self.wanted.id is not None
            raise self._missing("id_column", self.wanted.id)
        if self._with_id and self._without_id and not self._given:
            raise UsageError(
                f"id_column: {self._with_id[0]} has a column 'id', {self._without_id[0]} has none;"
                " 'id' rejects the rows without one, 'none' numbers all rows",
                param="id_column",
            )
        return self.wanted.id if self._with_id else None

    def _id_type(self) -> pa.DataType:
        return {frozenset({"int"}): pa.int64(), frozenset({"uint64"}): pa.uint64()}.get(
            frozenset(self._ids), pa.string()
        )

    def _missing(self, param: str, column: str) -> UsageError:
        assert self._first is not None
        return _no_column(param, column, *self._first)


def _no_column(param: str, column: str, file: str, names: Iterable[str]) -> UsageError:
    meant = nearest(column, names)
    return UsageError(f"{param}={column!r}: {file} has the columns {quoted(names)}{meant}", param=param)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_null(kind))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name in PARTS for field in kind)
    is_binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return _is_text(kind) or any(check(kind) for check in is_binary)


_EXPECTED: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "text_column": (_is_text, "text"),
    "image_column": (_is_image, "bytes, paths or {bytes, path}"),
}


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values: without dictionary encoding, and plain text for large and view text."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(value) or pa.types.is_string_view(value) else value


def _stored(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_null(kind) else kind


def _unified(old: pa.DataType, new: pa.DataType) -> pa.DataType:
    both = [pa.schema([pa.field("", kind)]) for kind in (old, new)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException:
        if all(_is_scalar(kind) for kind in (old, new)):
            return pa.string()
        raise


def _is_scalar(kind: pa.DataType) -> bool:
    checks = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    return any(check(kind) for check in checks)


def _id_kinds(name: str, column: str, kind: pa.DataType) -> set[str]:
    """The kinds of a file's ids: `int`, `uint64` or `text`; empty if all are null."""
    value = plain(kind)
    if pa.types.is_null(value):
        return set()
    if pa.types.is_uint64(value):
        return {"uint64"}
    if pa.types.is_integer(value) or pa.types.is_floating(value):
        return {"int"}
    if pa.types.is_string(value) or pa.types.is_boolean(value) or _is_uuid(value):
        return {"text"}
    raise FileFormatError(
        f"{name}: column {column!r} is {kind}; ids are text, whole numbers or UUIDs;"
        f" id_column={NO_IDS} numbers the rows instead"
    )


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.UuidType) or (pa.types.is_fixed_size_binary(kind) and kind.byte_width == UUID_BYTES)
