"""A picture of a bench page, with whatever Chromium is installed (apt-get install chromium).

rest-deploy bench --sizes 224,448 --batches 1 --seconds 3
python scripts/screenshot.py build/bench/bench-….html docs/images/bench.png --height 1720
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LEAST_WINDOW = 500
"""Headless Chromium opens none that is narrower; a narrower page is shown in a frame."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1600)
    parser.add_argument("--top", type=int, default=0, help="Pixels of the page above the picture.")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--colours", type=int, default=256, help="Of the PNG's palette; 0 for all.")
    wanted = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser here; one of {', '.join(BROWSERS)} is needed", file=sys.stderr)
        return 4
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        width = max(wanted.width, LEAST_WINDOW)
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", f"--window-size={width},{wanted.height}",
            f"--screenshot={shot}", "--virtual-time-budget=2000",
            _staged(wanted.page, Path(folder), wanted.width, wanted.height, wanted.top,
                    wanted.theme).as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture = Image.open(shot).convert("RGB").crop((0, 0, wanted.width, wanted.height))
    if wanted.colours:
        picture = picture.quantize(wanted.colours, dither=Image.Dither.NONE)
    wanted.picture.parent.mkdir(parents=True, exist_ok=True)
    picture.save(wanted.picture, optimize=True)
    print(f"{wanted.picture}: {picture.width}x{picture.height}, "
          f"{wanted.picture.stat().st_size / 1e3:.0f} KB")  # fmt: skip
    return 0


def _staged(page: Path, folder: Path, width: int, height: int, top: int, theme: str) -> Path:
    """The page in its theme, in a frame of exactly `width`, scrolled by `top`."""
    inner, outer = folder / "page.html", folder / "frame.html"
    html = page.read_text(encoding="utf-8")
    inner.write_text(html.replace("<html ", f'<html data-theme="{theme}" ', 1), encoding="utf-8")
    outer.write_text(
        f'<!doctype html><body style="margin:0;overflow:hidden"><iframe src="page.html" '
        f'style="border:0;display:block;width:{width}px;height:{height + top}px;'
        f'margin-top:-{top}px"></iframe>',
        encoding="utf-8",
    )
    return outer


if __name__ == "__main__":
    sys.exit(main())
