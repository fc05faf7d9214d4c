"""A stored bench record, read back."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rest_deploy.bench.record import Record
from rest_deploy.errors import ArtifactError, InputError

MEASURE = "rest-deploy bench writes a record"


def read_record(file: Path) -> Record:
    """The record that `rest-deploy bench` wrote.

    Raises `ArtifactError` for a file that is missing or no record of this version: a NaN is null in
    JSON, and refused with the place where it stands.
    """
    if not file.is_file():
        raise ArtifactError(f"no such record: {file}", hint=MEASURE)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Record)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"{file} is not a bench record of this version: {error}", hint=MEASURE
        ) from error


def page_path(record: Path, wanted: Path | None) -> Path:
    """Where the page goes: `wanted`, else beside the record.

    Raises `InputError` where it would replace the record itself.
    """
    page = wanted or record.with_suffix(".html")
    if page.resolve() == record.resolve():
        raise InputError(f"{page} is the record itself; the page would replace it",
                         hint="name another file with -o")  # fmt: skip
    if page.is_dir():
        raise InputError(f"{page} is a folder; expected the name of a file",
                         hint=f"-o {page / 'bench.html'}")  # fmt: skip
    return page
