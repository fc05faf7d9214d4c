"""Write the tables of README.md and docs/ from benchmarks/results/*.json.

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; `--check` only compares.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rest_deploy.cards import available

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECEIPTS = ROOT / "calibration" / "receipts"
BACKENDS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def instance_norm() -> str:
    """Relative error per form and size, fresh and trained weights side by side."""
    records = {
        kind: json.loads(path.read_text())
        for kind in ("fresh", "trained")
        if (path := RESULTS / f"instance_norm_lite_{kind}.json").is_file()
    }
    errors = {
        (kind, row["form"], row["size"]): row["relative_error"]
        for kind, record in records.items()
        for row in record["rows"]
    }
    sizes = list(dict.fromkeys(size for _, _, size in errors))
    lines = [_row(["weights", "form", *sizes]), _row(["---"] * (2 + len(sizes)))]
    for kind in records:
        for form in ("folded", "decomposed", "native", "stock"):
            cells = [f"{errors[kind, form, size]:.1e}" for size in sizes]
            lines.append(_row([kind, form, *cells]))
    return "\n".join(lines)


def instance_norm_variants() -> str:
    """Median error of each way to write the folded form."""
    record = json.loads((RESULTS / "instance_norm_variants.json").read_text())
    lines = [_row(["form of the same function", "relative error"]), _row(["---", "---"])]
    return "\n".join(
        lines + [_row([row["form"], f"{row['median']:.1e}"]) for row in record["rows"]]
    )


def calibration() -> str:
    """Peak memory for few and many images, rate against plain inference, of lite."""
    record = json.loads((RESULTS / "calibration_lite.json").read_text())
    few, many = record["peak_mb"]
    rates = sorted(record["rates"], key=lambda found: float(found["ratio"]))
    middle = rates[len(rates) // 2]
    lines = [
        _row(["rest_lite, 224x224", "", ""]),
        _row(["---"] * 3),
        _row(["peak memory", f"{few} images: {record['peak_mb'][few]:.0f} MB",
              f"{many} images: {record['peak_mb'][many]:.0f} MB"]),
        _row(["images a second", f"inference: {middle['plain_per_s']:.0f}",
              f"calibration: {middle['calibration_per_s']:.0f} ({middle['ratio']:.2f} of it)"]),
    ]  # fmt: skip
    return "\n".join(lines)


def quantization() -> str:
    """Error and agreement per row, both models side by side."""
    nano, lite = _quantization("nano"), _quantization("lite")
    lines = [
        _row(["", "nano: error", "agreement", "lite: error", "agreement"]),
        _row(["---"] * 5),
    ]
    for name, row in nano.items():
        cells = [name]
        for found in (row, lite.get(name)):
            cells += (
                [f"{found['relative_error']:.1e}", f"{found['agreement']:.1%}"]
                if found
                else ["", ""]
            )
        lines.append(_row(cells))
    return "\n".join(lines)


def quantization_v2() -> str:
    """Error and agreement per row of v2-nano."""
    lines = [_row(["", "v2-nano: error", "agreement"]), _row(["---"] * 3)]
    for name, row in _quantization("v2_nano").items():
        cells = [name, f"{row['relative_error']:.1e}", f"{row['agreement']:.1%}"]
        lines.append(_row(cells))
    return "\n".join(lines)


def quantization_latency() -> str:
    """Ratio to the fastest peer per runtime, of lite."""
    latency = json.loads((RESULTS / "quantization_lite.json").read_text())["latency"]
    header = ["rest_lite", "ONNX Runtime: ms", "ratio", "OpenVINO: ms", "ratio"]
    lines = [_row(header), _row(["---"] * 5)]
    for name in latency["onnxruntime"]["models"]:
        cells = [name]
        for runtime in ("onnxruntime", "openvino"):
            found = latency[runtime]["models"].get(name)
            if found is None:
                cells += ["does not load", ""]
                continue
            low, high = found["ratio_quartiles"]
            cells += [
                f"{found['median_ms']:.0f}",
                f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})",
            ]
        lines.append(_row(cells))
    return "\n".join(lines)


def _quantization(variant: str) -> dict[str, dict[str, float]]:
    record = json.loads((RESULTS / f"quantization_{variant}.json").read_text())
    return {row["row"]: row for row in record["rows"]}


def instance_norm_plan() -> str:
    """Kernels and float32 maps of each form in NVIDIA's FP16 plan."""
    record = json.loads((RESULTS / "instance_norm_plan.json").read_text())
    lines = [
        _row(["form", "kernels in all", "of softmax and norm", "float32 maps", "scratch"]),
        _row(["---"] * 5),
    ]
    for row in record["rows"]:
        cells = [row["form"], row["layers"], row["norm_layers"], row["float32_maps"]]
        lines.append(_row([*cells, f"{row['scratch_bytes'] / 1e6:.0f} MB"]))
    return "\n".join(lines)


def tensorrt_builds() -> str:
    """Seconds, size and scratch memory per variant, precision and profile plan."""
    record = json.loads((RESULTS / "tensorrt_builds.json").read_text())
    lines = [
        _row(["", "profiles", "build", "file", "scratch", "layers"]),
        _row(["---"] * 6),
    ]
    for row in record["rows"]:
        cells = [f"{row['variant']} {row['precision']}", row["shapes"], f"{row['seconds']:.1f} s"]
        cells += [f"{row[f'{name}_bytes'] / 1e6:.0f} MB" for name in ("size", "scratch")]
        lines.append(_row([*cells, row["layers"]]))
    return "\n".join(lines)


def speed() -> str:
    return _speed("lite")


def speed_lite_448() -> str:
    return _speed("lite_448")


def speed_base() -> str:
    return _speed("base")


def _speed(name: str) -> str:
    """Median ms and ratio to ours on OpenVINO, of the engines of both groups at every shape."""
    record = json.loads((RESULTS / f"speed_{name}.json").read_text())
    variant, lines = record["variant"], []
    for group, found in record["groups"].items():
        ratios = {(one["other"], one["shape"]): one for one in found["ratios"]}
        shapes = list(dict.fromkeys(_shape(point) for engine in found["engines"]
                                    for point in engine["points"]))  # fmt: skip
        lines += [
            _row([f"rest_{variant} {group}", "error", *shapes]),
            _row(["---"] * (2 + len(shapes))),
        ]
        for engine in found["engines"]:
            points = {_shape(point): point for point in engine["points"]}
            error = found["relative_error"][engine["label"]]
            cells = [f"{error:.1e}" if isinstance(error, float) else "-"]
            for shape in shapes:
                ratio = ratios.get((engine["label"], shape))
                times = f" ({ratio['ratio']:.2f})" if ratio else ""
                cells.append(f"{points[shape]['host']['median']:.1f} ms{times}"
                             if shape in points else "failed")  # fmt: skip
            lines.append(_row([engine["label"], *cells]))
        lines.append("")
    return "\n".join(lines).rstrip()


def _shape(point: dict[str, Any]) -> str:
    return f"{point['batch']}x3x{point['height']}x{point['width']}"


def receipts() -> str:
    """Error, agreement, labelled top-1 and speed of every shipped recipe's receipt."""
    shapes = ("1x3x224x224", "8x3x224x224")
    header = ["variant", "recipe", "backend", "error", "agreement", "top-1 float, INT8"]
    lines = [_row([*header, *(f"speed {shape}" for shape in shapes)])]
    lines.append(_row(["---"] * (len(header) + len(shapes))))
    found = [json.loads(path.read_text()) for path in sorted(RECEIPTS.glob("*.json"))]
    for receipt in sorted(found, key=lambda one: list(available()).index(one["variant"])):
        for row in receipt["measured"]:
            speeds = {one["shape"]: one for one in row["speed"]}
            lines.append(_row([
                receipt["variant"], row["recipe"], row["backend"], f"{row['relative_error']:.1e}",
                f"{row['agreement']:.1%}", f"{row['top1_reference']:.1%}, {row['top1_engine']:.1%}",
                *("{ratio:.2f} ({low:.2f} to {high:.2f})".format(**speeds[s]) for s in shapes),
            ]))  # fmt: skip
    return "\n".join(lines)


def outputs() -> str:
    """Error of every output of INT8 engines, and the neighbours that retrieval keeps."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("outputs_*.json"))]
    columns = [
        (f"{record['variant']}, {BACKENDS[name]}", row)
        for record in found
        for name, row in record["backends"].items()
    ]
    lines = [_row(["INT8", *(title for title, _ in columns)]), _row(["---"] * (1 + len(columns)))]
    for name in columns[0][1]["relative_error"]:
        lines.append(_row([f"error of {name}", *(f"{row['relative_error'][name]:.1e}"
                                                  for _, row in columns)]))  # fmt: skip
    lines.append(_row(["top-1 agreement", *(f"{row['agreement']:.1%}" for _, row in columns)]))
    for name in columns[0][1]["neighbours"]:
        lines.append(_row([f"nearest neighbour {name}", *(f"{row['neighbours'][name]:.1%}"
                                                           for _, row in columns)]))  # fmt: skip
    return "\n".join(lines)


def gpu() -> str:
    """Milliseconds of each engine by batch, from the host and from the GPU's memory, and error."""
    groups = _gpu()
    host, resident = (_times(groups[name]) for name in ("host", "resident"))
    batches = list(next(iter(host.values())))
    lines = [
        _row(["", *(f"{place}, {batch}" for place in ("host", "resident") for batch in batches),
              "error"]),
        _row(["---"] * (2 + 2 * len(batches))),
    ]  # fmt: skip
    for label, times in host.items():
        cells = [f"{found[batch]:.2f}" for found in (times, resident[label]) for batch in batches]
        lines.append(_row([label, *cells, _gpu_error(groups["host"], label)]))
    return "\n".join(lines)


def gpu_norms() -> str:
    """The InstanceNorm's forms on the GPU."""
    return _gpu_group("norms")


def gpu_settings() -> str:
    """What the CUDA provider's options make of the FP16 file."""
    return _gpu_group("settings")


def _gpu_group(name: str) -> str:
    group = _gpu()[name]
    lines: list[str] = []
    for label, times in _times(group).items():
        lines = lines or [_row(["", *map(str, times), "error"]), _row(["---"] * (2 + len(times)))]
        cells = [f"{time:.2f}" for time in times.values()]
        lines.append(_row([label, *cells, _gpu_error(group, label)]))
    failed = [engine["label"] for engine in group["engines"] if engine["failed"]]
    lines += [_row([label, *["fails"] * lines[0].count("|")][: lines[0].count("|") - 1])
              for label in failed]  # fmt: skip
    return "\n".join(lines)


def _gpu() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "gpu_lite.json").read_text())["groups"]
    return found


def _times(group: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Label -> batch -> median, of those that ran."""
    return {
        engine["label"]: {point["batch"]: point["host"]["median"] for point in engine["points"]}
        for engine in group["engines"]
        if not engine["failed"]
    }


def _gpu_error(group: dict[str, Any], label: str) -> str:
    return f"{group['relative_error'][label]['relative_error']:.1e}"


def harness() -> str:
    """Verdicts on two engines of one speed and on one slowed by 5 %."""
    record = json.loads((RESULTS / "harness.json").read_text())
    verdicts = ["no difference", "ambiguous", "faster", "slower"]
    lines = [_row(["engine", "pair", "trials", *verdicts]), _row(["---"] * (3 + len(verdicts)))]
    for found in record["trials"]:
        if found["kind"] == "records":
            continue
        counts = found["verdicts"]
        lines.append(_row([found["engine"], found["kind"], found["trials"],
                           *(counts.get(name, 0) for name in verdicts)]))  # fmt: skip
    return "\n".join(lines)


def triton() -> str:
    """Images a second of each way and their ratio to the engine alone."""
    record = json.loads((RESULTS / "triton.json").read_text())
    lines = [
        _row(["", "images/s", "of", "ratio", "p50", "p99", "mean batch"]),
        _row(["---"] * 7),
    ]
    for row in record["rows"]:
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]) if row["ratio"] else ""
        times = [f"{row['latency_ms'][name]:.0f} ms" for name in ("p50", "p99")]
        batch = f"{row['mean_batch']:.1f}" if row["mean_batch"] else ""
        lines.append(_row([row["way"], f"{row['images_per_second']:.0f}",
                           row["base"] if row["ratio"] else "", ratio, *times, batch]))  # fmt: skip
    return "\n".join(lines)


def variants() -> str:
    """What the cards say was published."""
    lines = [
        _row(["variant", "top-1", "parameters", "GFLOPs", "images/s, V100"]),
        _row(["---"] * 5),
    ]
    cards = [tomllib.loads(path.read_text()) for path in (ROOT / "models").glob("*.toml")]
    for card in sorted(cards, key=_family_and_size):
        told = card.get("published")
        cells = ["for tests and the demo", "", "", ""]
        if told:
            cells = [f"{told['top1']} %", f"{told['parameters_m']} M", told["gflops"],
                     told["images_per_second_v100"]]  # fmt: skip
        lines.append(_row([f"`{card['variant']}`", *cells]))
    return "\n".join(lines)


def _family_and_size(card: dict[str, Any]) -> tuple[str, int, int]:
    inside = card["architecture"]
    return inside["family"], sum(inside["dims"]), sum(inside["depths"])


TABLES: dict[str, Callable[[], str]] = {
    "calibration": calibration,
    "harness": harness,
    "instance_norm": instance_norm,
    "instance_norm_variants": instance_norm_variants,
    "instance_norm_plan": instance_norm_plan,
    "quantization": quantization,
    "quantization_latency": quantization_latency,
    "quantization_v2": quantization_v2,
    "outputs": outputs,
    "gpu": gpu,
    "gpu_norms": gpu_norms,
    "gpu_settings": gpu_settings,
    "receipts": receipts,
    "speed": speed,
    "speed_base": speed_base,
    "speed_lite_448": speed_lite_448,
    "tensorrt_builds": tensorrt_builds,
    "triton": triton,
    "variants": variants,
}


def fill(text: str) -> str:
    """`text` with every marked table made anew. Raises KeyError for an unknown name."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- /table -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- /table -->", table, text, flags=re.DOTALL)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(filled, encoding="utf-8")
    print("tables made anew in: " + (", ".join(stale) or "nothing"))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
