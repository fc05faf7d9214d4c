"""The error tree: every error says what arrived, what was expected and what mends it.

Exit codes (documented in README.md, checked by tests/test_errors.py):

====  ==========================================================================
code  meaning
====  ==========================================================================
0     done
1     the check ran and failed: accuracy below the bound, slower than allowed
2     wrong command line (click's own code)
3     bad input: a card, checkpoint, model file, image or tensor
4     something is missing on this machine: a package, a device, a backend
5     the result could not be written: directory, permission, disk space
6     an internal invariant broke; please report it
130   interrupted (Ctrl-C)
====  ==========================================================================
"""

from __future__ import annotations


class RestDeployError(Exception):
    """Root of the tree. `hint` is the command or action that mends it."""

    exit_code = 6

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class VerificationError(RestDeployError):
    """A check ran to its end and the result is outside its bound."""

    exit_code = 1


class SelfTestError(VerificationError):
    """An engine does not answer on this machine as it did where it was built."""


class InputError(RestDeployError):
    """Something the user handed over cannot be used as it is."""

    exit_code = 3


class CardError(InputError):
    """A card in models/ or calibration/ is unknown or malformed."""


class CheckpointError(InputError):
    """A checkpoint is unreadable, unsafe, or does not fit the variant."""


class ArtifactError(InputError):
    """A model file or its sidecar is damaged, foreign or out of step."""


class BuildError(InputError):
    """A builder refused the graph, the shapes or the options. `log`: all of its messages."""

    def __init__(self, message: str, *, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class ImageError(InputError):
    """An image cannot be decoded or is outside the supported limits."""


class ShapeError(InputError):
    """A tensor has a shape or type that the model does not accept."""


class MissingDependencyError(RestDeployError):
    """A package, device or backend that the command needs is not here."""

    exit_code = 4


class DeviceError(MissingDependencyError):
    """The GPU or its driver refused: no memory, no such device, a kernel that failed."""


class DeviceMemoryError(DeviceError):
    """The GPU has not as much memory left as was asked for."""


class OutputError(RestDeployError):
    """A result could not be written. What was there before is untouched."""

    exit_code = 5


class InvariantError(RestDeployError):
    """A graph pass or rewrite broke what it promised to keep."""

    exit_code = 6


def installed(module: str) -> bool:
    """Whether `module` can be imported, without importing it (its parents are)."""
    from importlib.util import find_spec

    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # a parent is missing, or a module has no spec
        return False
    # A bare folder of that name on the path is a namespace package without a file.
    return spec is not None and spec.origin is not None


def require(module: str, extra: str) -> None:
    """Raise `MissingDependencyError` unless `module` is installed (without importing it).

    `extra` is the optional-dependency group of pyproject.toml that brings it.
    """
    if not installed(module):
        raise MissingDependencyError(
            f"this needs the Python package {module!r}, which is not installed",
            hint=f"pip install 'rest-deploy[{extra}]'",
        )
