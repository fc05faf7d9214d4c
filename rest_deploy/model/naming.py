"""Where a checkpoint keeps a ResT, told by its names alone.

Training scripts, wrappers and downstream models put the same weights behind other names: under an
entry ("model", "state_dict"), behind a prefix ("module.", "backbone.bottom_up."), beside those of a
decoder. Entry and prefix are one dotted path, so they are found the same way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

STATE_KEYS = ("model_ema", "state_dict_ema", "ema", "model", "state_dict")
"""Where training scripts put the weights; averaged (EMA) weights come first."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Left in names by DataParallel, torch.compile, FSDP and activation checkpointing."""

COUNTERS = ("num_batches_tracked", "n_averaged")
"""Steps of a BatchNorm and of torch.optim.swa_utils.AveragedModel: no weights."""

PARTS = re.compile(r"stem|patch_embed_[2-4]|patch_[2-4]|stage[1-4]")
ANCHOR = re.compile(r"(stage[1-4])\.0\.(?:attn|norm1|mlp)\.")
OUTPUT_NORM = re.compile(r"(norm[1-4]|norm_[1-4])\.(?:0\.)?(weight|bias)")
AVERAGED = re.compile(r"(?:^|_)(?:ema|swa|averaged)(?:_|$)", re.IGNORECASE)
LIVE = "current_model_state"
"""Beside it, Lightning's WeightAveraging keeps the averaged weights as "state_dict"."""

LEAST_STAGES = 2
"""Of which names must be there to call something a ResT; what is missing is then said by name."""


@dataclass(frozen=True)
class Found:
    """A ResT in a file.

    key: dotted path of its entry, "" for the top; prefix: of its names there, with the last dot.
    names: official name -> name in the entry. output_norms: the same of a detector's norms, one for
    the output of each stage. others: the entry's names outside of `prefix`. averaged: EMA or SWA;
    counter: entry and name of the number of models in that average, where there is one.
    """

    key: str
    prefix: str
    names: Mapping[str, str]
    output_norms: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    averaged: bool = False
    counter: tuple[str, str] | None = None

    @property
    def place(self) -> str:
        """Entry and prefix in one, without the last dot; "." for the top."""
        return ".".join(filter(None, (self.key, self.prefix.rstrip(".")))) or "."


class CollisionError(ValueError):
    """Two names of a file mean the same weight."""


def find(entries: Mapping[str, Collection[str]]) -> list[Found]:
    """Every ResT in `entries`: path of an entry -> names of its tensors.

    Raises `CollisionError`.
    """
    found = []
    for key, names in entries.items():
        prefixes = _prefixes(names)
        for prefix in prefixes:
            inner = [other for other in prefixes if other != prefix and other.startswith(prefix)]
            found.append(_under(key, prefix, names, inner, entries))
    return found


def best(found: Sequence[Found], unused: Collection[str] = ()) -> list[Found]:
    """Those that come first: averaged ones, then in the order of `STATE_KEYS`. One, unless the file
    does not say which. unused: places of averages that were never updated; they come last."""

    def rank(one: Found) -> tuple[bool, bool, int]:
        last = one.key.rpartition(".")[2]
        known = STATE_KEYS.index(last) if last in STATE_KEYS else len(STATE_KEYS)
        return one.place in unused, not one.averaged, known

    least = min(map(rank, found), default=None)
    return [one for one in found if rank(one) == least]


def named(found: Iterable[Found], key: str) -> list[Found]:
    """Those at or below the place `key`; "." is the top without a prefix."""
    return [one for one in found if key == one.place or f"{one.place}.".startswith(f"{key}.")]


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def groups(found: Found) -> list[str]:
    """What of its entry is no part of it, in words: "112 weights of decode_head"."""
    above = found.prefix.split(".")[:-2]
    counts: Counter[str] = Counter()
    for name in found.others:
        if is_counter(name):
            continue
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        shared = 0
        while shared < min(len(above), len(parts) - 1) and parts[shared] == above[shared]:
            shared += 1
        counts[".".join(parts[: shared + 1]).rstrip("0123456789")] += 1
    return [f"{count} weight{'s'[: count > 1]} of {name}" for name, count in counts.items()]


def _prefixes(names: Iterable[str]) -> list[str]:
    """Of names that belong to a ResT, in the order in which they come."""
    stages: dict[str, set[str]] = {}
    for name in names:
        prefix, own = _split(name)
        anchor = ANCHOR.match(own)
        if anchor is not None:
            stages.setdefault(prefix, set()).add(anchor.group(1))
    return [prefix for prefix, seen in stages.items() if len(seen) >= LEAST_STAGES]


def _split(name: str) -> tuple[str, str]:
    """ "model.stage1.0._orig_mod.attn.q.weight" -> "model.", "stage1.0.attn.q.weight". No own name
    where no part of a ResT is named."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if PARTS.fullmatch(part):
            own = [part for part in parts[index:] if part not in WRAPPERS]
            return "".join(f"{part}." for part in parts[:index]), ".".join(own)
    return name, ""


def _under(
    key: str,
    prefix: str,
    names: Collection[str],
    inner: Sequence[str],
    entries: Mapping[str, Collection[str]],
) -> Found:
    own: dict[str, str] = {}
    norms: dict[str, str] = {}
    others = []
    for name in names:
        if not name.startswith(prefix) or any(name.startswith(other) for other in inner):
            others.append(name)
            continue
        rest = [part for part in name.removeprefix(prefix).split(".") if part not in WRAPPERS]
        official = ".".join(rest)
        if official in COUNTERS:
            others.append(name)
            continue
        norm = OUTPUT_NORM.fullmatch(official)
        into = own if norm is None else norms
        official = official if norm is None else f"{norm.group(1)}.{norm.group(2)}"
        if official in into:
            raise CollisionError(f"{into[official]} and {name} are both {official}")
        into[official] = name
    path = [*key.split("."), *prefix.split(".")]
    counter = _counter(key, prefix, names, entries)
    live_beside = key == "state_dict" and LIVE in entries
    averaged = counter is not None or live_beside or any(map(AVERAGED.search, path))
    return Found(key, prefix, own, norms, tuple(others), averaged, counter)


def _counter(
    key: str, prefix: str, names: Collection[str], entries: Mapping[str, Collection[str]]
) -> tuple[str, str] | None:
    """Of an AveragedModel: it has its model under "module" and the counter beside it."""
    parts = prefix.split(".")[:-1]
    for index, part in enumerate(parts):
        name = ".".join([*parts[:index], "n_averaged"])
        if part == "module" and name in names:
            return key, name
    state = "averaging_state"  # Lightning's
    beside = key == "state_dict" and LIVE in entries and "n_averaged" in entries.get(state, ())
    return (state, "n_averaged") if beside else None
