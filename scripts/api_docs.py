"""Reference pages (HTML) of the Python API, made from its docstrings; no network is needed.

python scripts/api_docs.py build/api      # or: make docs
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rest_deploy.errors import installed

MODULES = (
    *("rest_deploy", "rest_deploy.errors", "rest_deploy.contracts", "rest_deploy.signature"),
    *("rest_deploy.preprocess", "rest_deploy.verify.parity"),
)
"""The package, what it raises, what its reports are made of, and how an image becomes a tensor."""

FIRST = (
    *("load_model", "export", "verify_model", "calibrate", "quantize", "build_engine"),
    *("benchmark", "deploy", "Session", "Classifier"),
)
"""Of the package's names, in the order in which they are used; the others follow."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="Folder of the pages.")
    output: Path = parser.parse_args().output
    if not installed("pdoc"):
        print("this needs the Python package 'pdoc': pip install 'rest-deploy[docs]'",
              file=sys.stderr)  # fmt: skip
        return 4
    write(output)
    print(f"{output / 'index.html'}: {len(MODULES)} pages")
    return 0


def write(output: Path) -> None:
    """One page a module, and a search over all of them."""
    import pdoc

    package = importlib.import_module("rest_deploy")
    names = [*FIRST, *(name for name in package.__all__ if name not in FIRST)]
    for name in names:  # loaded on first use; pdoc reads what is there
        setattr(package, name, getattr(package, name))
    vars(package)["__all__"] = names
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text="rest-deploy")
    pdoc.pdoc(*MODULES, output_directory=output)


if __name__ == "__main__":
    sys.exit(main())
