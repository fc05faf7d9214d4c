"""Where the page of a bench record goes."""

from __future__ import annotations

from pathlib import Path

from rest_deploy.errors import InputError


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
