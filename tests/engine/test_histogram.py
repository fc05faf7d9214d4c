from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.engine import histogram
from rest_deploy.engine.histogram import read_histogram
from rest_deploy.engine.planner import Expected
from rest_deploy.errors import InputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.csv"


def test_all_columns(path: Path) -> None:
    path.write_text("height,width,batch,count\n224,224,8,900\n224,384,1,7\n224,224,8,100\n")
    assert read_histogram(path, None) == (
        Expected(224, 224, 1, 8, 8, 1000),
        Expected(224, 384, 1, 1, 1, 7),
    )


def test_as_a_log_has_it(path: Path) -> None:
    """A row a request, columns in another order, spaces, CRLF, quotes, an empty line, no last
    newline."""
    path.write_bytes(b'width, height\r\n 384,224\r\n"384","224"\r\n\r\n224,224')
    assert read_histogram(path, None) == (
        Expected(224, 224, 1, 6, 32, 1),
        Expected(224, 384, 1, 6, 32, 2),
    )
    assert read_histogram(path, (4, 16))[0] == Expected(224, 224, 4, 8, 16, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: the header is ''"),
        ("224,224,8,5\n", "line 1: the header is '224,224,8,5'; expected height,width"),
        ("height,batch\n224,1\n", "line 1: the header is 'height,batch'"),
        ("height,width,when\n224,224,1\n", "line 1: the header is 'height,width,when'"),
        ("height,width,width\n224,224,1\n", "line 1: the header is 'height,width,width'"),
        ("height;width\n224;224\n", "line 1: the header is 'height;width'"),
        ("height,width\n", "no row below the header on line 1"),
        ("height,width\n\n\n", "no row below the header on line 1"),
        ("height,width\n224,224\n224\n", "line 3: 1 values; expected 2: height,width"),
        ("height,width\n224,224,1\n", "line 2: 3 values; expected 2"),
        ("height,width\n224,31\n", "line 2: width is '31'; expected a whole number from 32"),
        ("height,width\n100000,224\n", "line 2: height is '100000'; .* from 32 to 99999"),
        ("height,width\n\n224.0,224\n", r"line 3: height is '224\.0'"),
        ("height,width\n2e2,224\n", "line 2: height is '2e2'"),
        ("height,width\n,224\n", "line 2: height is ''"),
        ("height,width\n٢٢٤,224\n", "line 2: height is '٢٢٤'"),
        ("height,width,count\n224,224,-3\n", "line 2: count is '-3'; .* from 1 to 1000000000000"),
        ("height,width,count\n224,224,0\n", "line 2: count is '0'"),
        ("height,width,batch\n224,224,0\n", "line 2: batch is '0'; .* from 1 to 99999"),
        ('height,width\n"224,224\n', "line 2: not CSV"),
    ],
)
def test_refused_with_the_line(path: Path, text: str, words: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_histogram(path, None)


def test_refused_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes("height,width\n224,224\n".encode("utf-16"))
    with pytest.raises(InputError, match="line 1: is UTF-16; expected UTF-8"):
        read_histogram(path, None)
    path.write_bytes(b"height,width\n224,224\n224,\xff\n")
    with pytest.raises(InputError, match="line 3: not UTF-8"):
        read_histogram(path, None)
    path.write_text("height,width\n" + "224,224\n" * 5)
    monkeypatch.setattr(histogram, "LARGEST_BYTES", 53)
    assert read_histogram(path, None)[0].count == 5
    monkeypatch.setattr(histogram, "LARGEST_BYTES", 52)
    with pytest.raises(InputError, match="has more than 0 MiB"):
        read_histogram(path, None)


def test_too_many_shapes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "LARGEST_SHAPES", 3)
    path.write_text("height,width\n" + "".join(f"224,{224 + n % 3}\n" for n in range(9)))
    assert len(read_histogram(path, None)) == 3
    path.write_text("height,width\n" + "".join(f"224,{224 + n}\n" for n in range(9)))
    with pytest.raises(InputError, match="line 5: more than 3 different shapes") as caught:
        read_histogram(path, None)
    assert "multiples of 32" in (caught.value.hint or "")


def test_no_file(path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        read_histogram(path, None)
    path.mkdir()
    with pytest.raises(InputError, match="is not a file"):
        read_histogram(path, None)


def test_batches_twice(path: Path) -> None:
    path.write_text("height,width,batch\n224,224,8\n")
    with pytest.raises(InputError, match="has a batch column, --expect-batches says it again"):
        read_histogram(path, (1, 32))


def test_excel_writes_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("height,width\n224,256\n", encoding="utf-8-sig")
    (found,) = read_histogram(path, (1, 4))
    assert (found.height, found.width) == (224, 256)
