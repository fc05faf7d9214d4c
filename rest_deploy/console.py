"""What all commands share: option types, failures to exit codes, Ctrl-C, progress on stderr."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from rest_deploy.errors import InputError, RestDeployError

if TYPE_CHECKING:
    from rest_deploy.verbs import Counter, Progress

INTERRUPT = "rest_deploy.interrupt"
"""Key of the command's `Interrupt` in click's context."""

TRACEBACK_VARIABLE = "REST_DEPLOY_TRACEBACK"
"""Set to anything: internal errors print where they come from."""


class Sizes(click.ParamType[tuple[tuple[int, int], ...]]):
    """A list of sizes: "224,200x225" -> ((224, 224), (200, 225)), height first."""

    name = "sizes"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002  # see param
    ) -> tuple[tuple[int, int], ...]:
        if isinstance(value, tuple):
            return value
        words = value.split(",")
        if not all(re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?", word) for word in words):
            self.fail(f"{value!r} is not a list of sizes like 224,200x225 (height x width)")
        sides = [[int(side) for side in word.split("x")] for word in words]
        return tuple((pair[0], pair[-1]) for pair in sides)


class Numbers(click.ParamType[tuple[int, ...]]):
    """A list of positive whole numbers: "1,5" -> (1, 5)."""

    name = "numbers"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002  # see param
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = value.split(",")
        if not all(re.fullmatch(r"[1-9][0-9]{0,4}", word) for word in words):
            self.fail(f"{value!r} is not a list of positive whole numbers like 1,5")
        return tuple(int(word) for word in words)


class Percent(click.ParamType[float]):
    """A percentage: "5%" or "5" -> 0.05."""

    name = "percent"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002  # see param
    ) -> float:
        if isinstance(value, float):
            return value
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,4})?%?", value):
            self.fail(f"{value!r} is not a percentage like 5%")
        return float(value.removesuffix("%")) / 100


class Interrupt:
    """Ctrl-C, remembered: libraries swallow KeyboardInterrupt while they import or trace."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was swallowed; called between the steps of a long command."""
        if self.seen:
            raise KeyboardInterrupt


class Commands(click.Group):
    """Turns every failure into one line and a documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        # Pillow's own bound is ours, and an error: preprocess.MAX_PIXELS.
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
        interrupt = Interrupt()
        ctx.meta[INTERRUPT] = interrupt
        # Not where SIGINT is ignored (a background job) or somebody else's.
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, interrupt) if in_main and usual else None
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # reported, with its exit code
            ctx.exit(_report(error, interrupt))
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)


def _report(error: BaseException, interrupt: Interrupt) -> int:
    """Print one line on stderr; returns the exit code of errors.py."""
    if interrupt.seen or isinstance(error, KeyboardInterrupt):
        click.echo("interrupted; nothing half-written is left", err=True)
        return 130
    if isinstance(error, OSError) and not isinstance(error, RestDeployError):
        place = f": {error.filename}" if error.filename else ""
        click.echo(f"error: {error.strerror or error}{place}"[:300], err=True)
        return InputError.exit_code
    if not isinstance(error, RestDeployError):
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error)
        reason = " ".join(str(error).split())[:200]
        click.echo(f"error: {type(error).__name__}: {reason}", err=True)
        click.echo(f"       please report this with the output of {TRACEBACK_VARIABLE}=1", err=True)
        return RestDeployError.exit_code
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"       {error.hint}", err=True)
    return error.exit_code


def counter(as_json: bool) -> Counter:
    """A line that counts on a terminal; in a log, one every ten seconds. On stderr."""
    interrupt = click.get_current_context().meta[INTERRUPT]
    terminal = sys.stderr.isatty()
    started: dict[str, tuple[float, int]] = {}
    shown = {"at": time.monotonic()}

    def show(step: str, done: int, total: int, unit: str) -> None:
        interrupt.check()
        now = time.monotonic()
        begun, first = started.setdefault(step, (now, done))
        last = done >= total
        due = now - shown["at"] >= (0.2 if terminal else 10.0)
        if as_json or not (due or (last and terminal)):
            return
        shown["at"] = now
        rate = (done - first) / (now - begun) if now > begun else 0.0
        counted = unit.partition(" ")[0]  # "images (3 bad)" come as images per second
        pace = f", {rate:.{0 if rate >= 10 else 1}f} {counted}/s" if rate > 0 else ""
        left = f", {_duration((total - done) / rate)} left" if rate > 0 and not last else ""
        line = f"  {step}: {done} of {total} {unit}{pace}{left}"
        click.echo(f"\r{line:<79}" if terminal else line, nl=not terminal or last, err=True)

    return show


def _duration(seconds: float) -> str:
    """In the units somebody waits in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def progress(as_json: bool) -> Progress:
    """One plain line a finished step, on stderr, so that stdout stays the report."""
    interrupt = click.get_current_context().meta[INTERRUPT]

    def show(step: str, seconds: float) -> None:
        interrupt.check()
        if not as_json:
            click.echo(f"  {step} ({seconds:.1f} s)", err=True)

    return show


def show(report: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """A report on stdout: as JSON, or as the text that `render` makes of it."""
    from rest_deploy.artifact import to_json

    click.echo(to_json(report) if as_json else render(report), nl=not as_json)
