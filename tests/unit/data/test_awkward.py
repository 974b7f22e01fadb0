"""Files as they come: each gives the right rows, or a message with file, place and remedy."""

import csv
import gzip
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ftlab import data
from ftlab.config import DataConfig
from ftlab.data import table
from ftlab.encodings import guess
from ftlab.errors import DataError
from ftlab.tasks.sql import TASK

Row = dict[str, Any]
ROWS: list[Row] = [
    {"question": f"How many over {i}?", "context": f"CREATE TABLE t{i} (a INTEGER)", "answer": f"SELECT {i}"}
    for i in range(12)
]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
FRAME = pd.DataFrame(ROWS)
COLUMNS = list(ROWS[0])


def text_csv(rows: list[Row], separator: str = ",", end: str = "\n", quoting: Any = csv.QUOTE_MINIMAL) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def load(path: Path) -> tuple[list[Row], list[str]]:
    parts = table.load(DataConfig(name="x", source="table", path=str(path)), TASK)
    read = [{"question": row.question, "context": row.context, "answer": row.answer} for row in parts.train]
    return read, parts.notes


CSV = text_csv(ROWS)
BOM = b"\xef\xbb\xbf"
READ: dict[str, tuple[str, bytes]] = {
    "CRLF": ("r.jsonl", LINES.replace(b"\n", b"\r\n")),
    "CR alone": ("r.jsonl", LINES.replace(b"\n", b"\r")),
    "no last line end": ("r.jsonl", LINES[:-1]),
    "byte order marks in the midst": ("r.jsonl", BOM + LINES.replace(b"\n", b"\n" + BOM, 1)),
    "blank lines": ("r.jsonl", b"\n \n" + LINES.replace(b"\n", b"\n\r\n\t\n")),
    "gzip without .gz": ("r.jsonl", gzip.compress(LINES)),
    "two gzip members": ("r.jsonl.gz", gzip.compress(LINES[: len(ROWS[0])]) + gzip.compress(LINES[len(ROWS[0]) :])),
    "no gzip in .gz": ("r.jsonl.gz", LINES),
    "a list in .jsonl": ("r.jsonl", json.dumps(ROWS).encode()),
    "an indented list in .jsonl": ("r.jsonl", BOM + json.dumps(ROWS, indent=2).encode()),
    "a list with a last comma": ("r.json", json.dumps(ROWS)[:-1].encode() + b",]"),
    "a list with CR alone": ("r.json", json.dumps(ROWS, indent=1).encode().replace(b"\n", b"\r")),
    "objects over several lines": ("r.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
    "objects over several lines in .jsonl": ("r.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
    "NaN in a column that is not read": ("r.jsonl", LINES.replace(b"}\n", b', "score": NaN}\n')),
    "a huge number in a column that is not read": ("r.jsonl", LINES.replace(b"}\n", b', "n": 1e400}\n')),
    "a nested column that is not read": ("r.jsonl", LINES.replace(b"}\n", b', "meta": {"a": [{"question": 1}]}}\n')),
    "pandas": ("r.json", FRAME.to_json().encode()),
    "pandas in .jsonl": ("r.jsonl", FRAME.to_json().encode()),
    "pandas, indented": ("r.json", FRAME.to_json(indent=2).encode()),
    "pandas with an index of texts": ("r.json", FRAME.set_index(FRAME.question + "x").to_json().encode()),
    "pandas split": ("r.json", FRAME.to_json(orient="split").encode()),
    "pandas index": ("r.json", FRAME.to_json(orient="index").encode()),
    "pandas records": ("r.json", FRAME.to_json(orient="records").encode()),
    "pandas table": ("r.json", FRAME.to_json(orient="table").encode()),
    "pandas lines": ("r.json", FRAME.to_json(orient="records", lines=True).encode()),
    "columns as lists": ("r.json", json.dumps(FRAME.to_dict("list")).encode()),
    "a list inside an object": ("r.json", json.dumps({"version": "1", "data": ROWS}, indent=1).encode()),
    "semicolons": ("r.csv", text_csv(ROWS, ";")),
    "tabs": ("r.tsv", text_csv(ROWS, "\t")),
    "tabs in .csv": ("r.csv", text_csv(ROWS, "\t")),
    "csv, gzip": ("r.csv.gz", gzip.compress(CSV)),
    "csv, CRLF and a byte order mark": ("r.csv", BOM + text_csv(ROWS, end="\r\n")),
    "csv, CR alone": ("r.csv", text_csv(ROWS, end="\r")),
    "csv, all quoted": ("r.csv", text_csv(ROWS, quoting=csv.QUOTE_ALL)),
    "csv, sep= as Excel writes it": ("r.csv", b"sep=;\r\n" + text_csv(ROWS, ";", "\r\n")),
    "csv, blanks round names": ("r.csv", CSV.replace(b"question,context", b" question , context", 1)),
    "csv, a comma too many in each line": ("r.csv", CSV.replace(b"\n", b",,\n")),
    "csv, an index without a name": ("r.csv", FRAME.to_csv().encode()),
    "csv, semicolons in another column's name": ("r.csv", CSV.replace(b"\n", b',"a;b;c;d"\n')),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read(name: str, tmp_path: Path) -> None:
    file, content = READ[name]
    (tmp_path / file).write_bytes(content)
    assert load(tmp_path / file)[0] == ROWS


TOLD = {
    "semicolons": "fields are separated by semicolons",
    "tabs in .csv": "fields are separated by tabs",
    "csv, sep= as Excel writes it": "fields are separated by semicolons",
    "pandas": "read as a table that pandas wrote with to_json()",
    "pandas index": "read as a table that pandas wrote with to_json(orient='index')",
    "a list inside an object": 'the rows are those of the list "data"',
}


@pytest.mark.parametrize("name", TOLD)
def test_an_unusual_shape_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    file, content = READ[name]
    (tmp_path / file).write_bytes(content)
    assert load(tmp_path / file)[1] == [f"{file}: {TOLD[name]}", f"train: 12 rows from {tmp_path / file}"]


def test_long_fields_and_line_ends_in_quotes_are_read_whole(tmp_path: Path) -> None:
    rows = [
        {**ROWS[0], "context": "CREATE TABLE t (" + "a, " * 70_000 + ")"},
        {**ROWS[1], "answer": 'SELECT "a;b"\nFROM t\n;'},
    ]
    limit = csv.field_size_limit()
    for separator in ",;\t":
        (tmp_path / "r.csv").write_bytes(text_csv([*rows, ROWS[2]], separator))
        read = load(tmp_path / "r.csv")[0]
        assert [row["context"] for row in read] == [rows[0]["context"], rows[1]["context"], ROWS[2]["context"]]
        assert read[1]["answer"] == rows[1]["answer"].strip()
    assert csv.field_size_limit() == limit, "the limit of the process stays"


def test_a_file_of_one_column_is_of_commas(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("question\nHow many; and which?\n")
    with pytest.raises(DataError, match=r"r\.csv: line 2: no column context, answer; the columns are question"):
        load(tmp_path / "r.csv")


FRENCH = "question,context,answer\n" + "".join(f"Combien d'élèves à Nîmes {i}?,c{i},a\n" for i in range(3))
CHINESE = "question,context,answer\n" + "".join(f"有多少个城市的人口超过 {i}?,c{i},a\n" for i in range(3))
POLISH = "question,context,answer\n" + "".join(f"Ile miast ma więcej niż {i} szkół?,c{i},a\n" for i in range(3))
RUSSIAN = "question,context,answer\n" + "".join(f"Сколько городов больше {i}?,c{i},a\n" for i in range(3))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NAN = b'{"question": NaN, "context": "c", "answer": "a"}\n'
TWICE = b'{"question": "q", "context": "c", "answer": "a", "answer": "b"}\n'
REFUSED: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "a name twice": (
        "r.csv",
        CSV.replace(b"context", b"answer", 1),
        ("line 1", "names answer 2 times (columns 2 and 3)", "or delete"),
    ),
    "a name twice but for blanks": (
        "r.csv",
        BOM + CSV.replace(b"context", b" question ", 1),
        (
            "line 1",
            "names question 2 times",
        ),
    ),
    "a column twice that is not read": (
        "r.csv",
        b"question,context,answer,x,x\na,b,c,d,e\n",
        ("line 1", "names x 2 times"),
    ),
    "ragged": ("r.csv", CSV + b"a,b\n" + b"a,b,c,d\n", ("line 14: 2 fields", "line 15: 4 fields", 'breaks in "..."')),
    "a quote never closed": ("r.csv", CSV + b'a,"b,c\n', ("line 14: broken CSV",)),
    "a key twice": ("r.jsonl", LINES + TWICE, ("line 13: answer occurs twice", "Keep one of the two")),
    "a key twice in a list": ("r.json", b"[\n" + TWICE + b"]", ("line 2: answer occurs twice",)),
    "text after a list": (
        "r.json",
        json.dumps(ROWS).encode() + b"\n[]",
        ("line 2: broken JSON (text after the list's end",),
    ),
    "a list never closed": (
        "r.json",
        json.dumps(ROWS, indent=1).encode()[:-2],
        ("broken JSON (Expecting ',' or ']'", "incomplete"),
    ),
    "rows without names": (
        "r.json",
        FRAME.to_json(orient="values").encode(),
        ("line 1: a list (['How", "must be an object"),
    ),
    "a list of fields a line": ("r.jsonl", b'["q", "c", "a"]\n["q", "c", "a"]\n', ("line 1: text (q), not an object",)),
    "a short row in a split table": (
        "r.json",
        b'{"columns": ["question", "context", "answer"], "data": [["a", "b", "c"], ["a"]]}',
        ("row 2: a list (['a']), not a list of 3",),
    ),
    "a gap in a table of columns": (
        "r.json",
        FRAME.to_json().replace('"3":"SELECT 3",', "").encode(),
        ("row 4: no column answer",),
    ),
    "NaN": ("r.jsonl", LINES + NAN, ("line 13: question is a number (nan), not text", "in quotes")),
    "a number of 5,000 digits": ("r.jsonl", LINES + b'{"n": ' + b"9" * 5000 + b"}\n", ("line 13: broken JSON",)),
    "broken lines among good ones": (
        "r.jsonl",
        b'{"question": \n' + LINES + b"{]\n",
        ("line 1: broken JSON", "line 14: broken JSON"),
    ),
    "cp1252": (
        "r.csv",
        FRENCH.encode("cp1252"),
        ("line 2: not UTF-8", "seems to be CP1252", "iconv -f CP1252 -t UTF-8 r.csv > NEW"),
    ),
    "cp1252 in gzip": (
        "r.csv",
        gzip.compress(FRENCH.encode("cp1252")),
        ("gzip -dc < r.csv | iconv -f CP1252 -t UTF-8 > NEW",),
    ),
    "GBK": ("r.csv", CHINESE.encode("gbk"), ("seems to be GB18030 (Simplified Chinese", "iconv -f GB18030 -t UTF-8")),
    "cp1250": ("r.csv", POLISH.encode("cp1250"), ("seems to be CP1250",)),
    "cp1251": ("r.csv", RUSSIAN.encode("cp1251"), ("seems to be CP1251",)),
    "koi8-r": ("r.csv", RUSSIAN.encode("koi8-r"), ("seems to be KOI8-R",)),
    "a header that is not UTF-8": (
        "r.csv",
        "größe,context,answer\na,b,c\n".encode("cp1252"),
        ("line 1: the first line is not UTF-8", "CP1252"),
    ),
    "noise": ("r.jsonl", bytes(range(128, 256)) + b"\n", ("line 1: not UTF-8", "cannot be recognised")),
    "one bad line in a UTF-8 file": (
        "r.csv",
        FRENCH.encode() + b"\xe9t\xe9,c,a\n",
        ("line 5: not UTF-8", "Other lines are UTF-8"),
    ),
    "an indented list in cp1252": (
        "r.json",
        '[\n{"question": "où êtes-vous à Nîmes"}]'.encode("cp1252"),
        ("line 2: not UTF-8 (byte 0xf9 at position 16)", "iconv -f CP1252"),
    ),
    "UTF-16": (
        "r.csv",
        CSV.decode().encode("utf-16"),
        ("line 1: UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 r.csv > NEW"),
    ),
    "UTF-16 without a mark": ("r.csv", CSV.decode().encode("utf-16-be"), ("iconv -f UTF-16BE",)),
    "UTF-32": ("r.jsonl", LINES.decode().encode("utf-32"), ("line 1: UTF-32, not UTF-8", "iconv -f UTF-32 ")),
    "UTF-32 without a mark": ("r.jsonl", LINES.decode().encode("utf-32-le"), ("iconv -f UTF-32LE",)),
    "a Git LFS pointer": ("r.jsonl", LFS, ("a Git LFS pointer", "git lfs pull")),
    "a Git LFS pointer as Parquet": ("r.parquet", LFS, ("a Git LFS pointer", "git lfs pull")),
    "Zstandard": ("r.jsonl", b"\x28\xb5\x2f\xfd12345", ("compressed by Zstandard", "zstd -d")),
    "a spreadsheet": ("r.csv", b"PK\x03\x04123", ("a spreadsheet", "save the sheet as CSV")),
    "Parquet by another name": ("r.jsonl", b"PAR1123", ("a Parquet file", "name ends in .parquet")),
    "a web page": ("r.jsonl", b"\n<!DOCTYPE html><title>Log in</title>", ("a web page", "Download the file again")),
    "an empty archive": ("r.jsonl.gz", gzip.compress(b""), ("the file is empty", "data.path=FILE")),
    "an empty .gz": ("r.jsonl.gz", b"", ("the file is empty",)),
    "a cut archive": ("r.jsonl.gz", gzip.compress(LINES)[:-12], ("damaged or incomplete", "again")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_place_and_remedy(name: str, tmp_path: Path) -> None:
    file, content, said = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / file)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / file))
    for part in said:
        assert part in message


TEXTS = {
    "Quel est l'âge du café préféré de François à Nîmes ? où": ("CP1252", "MACINTOSH", "CP850"),
    "Wie viele Städte größer als Köln? Übung „gut“ schön": ("CP1252", "MACINTOSH"),
    "¿Cuántos años tiene el niño? Él dijo «sí»": ("CP1252", "MACINTOSH", "CP850"),
    "the singer’s name – “old”, 5 °C": ("CP1252", "MACINTOSH"),  # noqa: RUF001
    "São Paulo não é a capital, ação": ("CP1252", "MACINTOSH", "CP850"),
    "Ile miast ma więcej niż pięć szkół? Łódź źle": ("CP1250",),
    "Kolik měst má více než pět škol? Žluťoučký kůň": ("CP1250",),
    "Сколько городов больше Москвы? Привет, мир": ("CP1251", "KOI8-R"),
    "город": ("CP1251", "KOI8-R"),
    "有多少个城市的人口超过一百万？请列出歌手的名字。": ("GB18030",),  # noqa: RUF001
    "SELECT 名字 FROM 歌手 WHERE 年龄 > 3": ("GB18030",),
    "有多少個城市的人口超過一百萬？請列出歌手的名字。": ("BIG5",),  # noqa: RUF001
    "人口が百万を超える都市はいくつありますか。歌手の名前": ("CP932", "EUC-JP"),
    "인구가 백만 명이 넘는 도시는 몇 개입니까?": ("CP949",),
}
PYTHON = {"MACINTOSH": "mac_roman"}
# Encodings that only the meaning of a text distinguishes: the one that wrote it must be among those named.
NEIGHBOURS = {
    "Zobraz jména všech studentů": ("ISO-8859-2", "CP852"),
    "Öğrencilerin adlarını ve yaşlarını göster": ("CP1254",),  # noqa: RUF001
    "Parodyk visų studentų vardus": ("CP1257",),
    "Показать имена всех студентов": ("CP866",),
    "הצג את שמות כל התלמידים": ("CP1255",),
}


@pytest.mark.parametrize(
    ("text", "encoding"), [(text, encoding) for text, names in TEXTS.items() for encoding in names]
)
def test_an_encoding_is_never_taken_for_another(text: str, encoding: str) -> None:
    """What wrote the text is the likeliest, or among the few that are named; its command gives the text back."""
    written = text.encode(PYTHON.get(encoding, encoding))
    names = guess(written)
    assert encoding in names
    assert names[0] == encoding or len(text) < 8
    done = subprocess.run(["iconv", "-f", encoding, "-t", "UTF-8"], input=written, capture_output=True, check=True)
    assert done.stdout.decode() == text


@pytest.mark.parametrize(
    ("text", "encoding"), [(text, encoding) for text, names in NEIGHBOURS.items() for encoding in names]
)
def test_what_wrote_a_text_is_among_the_encodings_named(text: str, encoding: str) -> None:
    written = text.encode(PYTHON.get(encoding, encoding))
    names = guess(written)
    assert encoding in names
    done = subprocess.run(["iconv", "-f", encoding, "-t", "UTF-8"], input=written, capture_output=True, check=True)
    assert done.stdout.decode() == text


def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    assert load(tmp_path / "one")[0] == ROWS
    parts = {"train": whole, "dev": whole.select([0, 1]), "test": whole.select([2]), "train_small": whole.select([3])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "several"))
    splits = data.load(DataConfig(name="x", source="table", path=str(tmp_path / "several")), TASK)
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [12, 2, 1]
    assert splits.test[0].id == "test:1"
    assert f"test: 1 rows from {tmp_path / 'several'} (save_to_disk)" in splits.notes
    assert "not read, since the names are not those of a split: train_small" in splits.notes
    datasets.DatasetDict(parts | {"validation": whole}).save_to_disk(str(tmp_path / "twice"))
    with pytest.raises(DataError, match="has the splits dev and validation, and both names mean validation"):
        load(tmp_path / "twice")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="a damaged or incomplete folder of save_to_disk"):
        load(tmp_path / "one")


def test_parquet_without_the_columns_names_those_it_has(tmp_path: Path) -> None:
    FRAME.rename(columns={"answer": "sql"}).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r\.parquet: row 1: no column answer; .*\n.*data\.columns\.answer=sql"):
        load(tmp_path / "r.parquet")


def test_a_folder_name_is_no_column_of_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "answer=x").mkdir()
    FRAME.to_parquet(tmp_path / "answer=x/r.parquet")
    assert load(tmp_path / "answer=x/r.parquet")[0] == ROWS


def test_the_shared_cases(shared: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="names answer 2 times"):
        load(shared("cases/case-09-dup-header.csv"))
    for name in ("case-11-semicolon.csv", "case-13-pandas.json"):
        rows, _ = load(shared(f"cases/{name}"))
        assert rows[11]["answer"] == "SELECT COUNT(*) FROM head11 WHERE age > 11"
        assert len(rows) == 12
