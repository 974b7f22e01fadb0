import csv
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import data
from ftlab.config import ColumnsConfig, DataConfig
from ftlab.data import table
from ftlab.errors import DataError
from ftlab.tasks.sql import TASK

Row = dict[str, Any]


def good(count: int, start: int = 0) -> list[Row]:
    return [
        {
            "question": f"How many? {i} ä\u2028",
            "context": f"CREATE TABLE t{i} (a INTEGER)",
            "answer": f"SELECT {i}",
        }
        for i in range(start, start + count)
    ]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        content = json.dumps(rows, indent=1).encode() if ".json" in path.suffixes else lines(rows)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def config(path: Path | str | None, **fields: Any) -> DataConfig:
    made: dict[str, Any] = {"name": "mine", "source": "table", "path": str(path), "validation": 2, **fields}
    return DataConfig(**made)


def text_of(splits: data.Splits) -> list[tuple[str, str, str]]:
    rows = splits.train + splits.validation + splits.test
    return [(row.question, row.context, row.answer) for row in rows]


SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "reference").mkdir()
    reference = data.load(config(write(tmp_path / "reference/rows.jsonl", good(40))), TASK)
    splits = data.load(config(write(tmp_path / f"rows{suffix}", good(40))), TASK)
    assert splits.sha256 == reference.sha256
    assert sorted(text_of(splits)) == sorted((r["question"], r["context"], r["answer"]) for r in good(40))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (34, 2, 4)


def test_json_lines_in_a_json_file_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf" + lines(good(40)) + b"\n  \n")
    assert len(text_of(data.load(config(tmp_path / "rows.json"), TASK))) == 40


def test_csv_text_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    rows = [{**row, "answer": f'SELECT "a, b"\nFROM t{i}'} for i, row in enumerate(good(20))]
    splits = data.load(config(write(tmp_path / "rows.csv", rows)), TASK)
    assert ('SELECT "a, b"\nFROM t7') in {row.answer for row in splits.train + splits.validation + splits.test}


def test_a_folder_with_its_own_splits_is_kept_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", good(10))
    write(tmp_path / "train-00001-of-00002.jsonl", good(10, 10))
    write(tmp_path / "dev.csv", good(3, 100))
    write(tmp_path / "test.parquet", good(4, 200))
    (tmp_path / "README.md").write_text("about")
    splits = data.load(config(tmp_path), TASK)
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [20, 3, 4]
    assert [row.answer for row in splits.train] == [f"SELECT {i}" for i in range(20)]
    assert [row.answer for row in splits.validation] == ["SELECT 100", "SELECT 101", "SELECT 102"]
    assert splits.test[1].id == "test.parquet:2"
    assert any(note.startswith("test: 4 rows from") and "test.parquet" in note for note in splits.notes)


def test_validation_is_taken_from_train_where_a_folder_has_none(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", good(20))
    write(tmp_path / "test.jsonl", good(4, 200))
    splits = data.load(config(tmp_path), TASK)
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [18, 2, 4]


def test_a_lone_file_of_any_name_and_a_data_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/sql_create_context_v4.json", good(30))
    assert len(text_of(data.load(config(tmp_path), TASK))) == 30


def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl", good(20))
    assert len(text_of(data.load(config("~/rows.jsonl"), TASK))) == 20


def test_rows_are_grouped_by_the_group_column_or_else_by_context(tmp_path: Path) -> None:
    shared = [{**row, "context": "CREATE TABLE one (a INTEGER)"} for row in good(30)]
    grouped = [{**row, "db_id": i // 10} for i, row in enumerate(shared)]
    splits = data.load(config(write(tmp_path / "b.jsonl", grouped), test_size=10, validation=10), TASK)
    assert [len({row.group for row in rows}) for rows in (splits.train, splits.validation, splits.test)] == [
        1,
        1,
        1,
    ]
    assert any("by db_id" in note for note in splits.notes)


def test_other_column_names(tmp_path: Path) -> None:
    rows = [{"q": r["question"], "schema text": r["context"], "sql": f"  {r['answer']}\n"} for r in good(20)]
    columns = ColumnsConfig(question="q", context="schema text", answer="sql")
    splits = data.load(config(write(tmp_path / "rows.csv", rows), columns=columns), TASK)
    assert sorted(row.answer for row in splits.test + splits.validation + splits.train) == sorted(
        f"SELECT {i}" for i in range(20)
    ), "answers are stripped"


def test_data_without_schemas_works_with_a_prompt_without_context(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": f"q{i}", "answer": "a"} for i in range(20)])
    splits = data.load(config(path, prompt="Q: {question}\nA: "), TASK)
    assert splits.train[0].context == ""
    with pytest.raises(DataError, match=r"leave {context} out of data\.prompt"):
        data.load(config(path), TASK)


BAD = {
    "missing column": (
        lines([{"qestion": r["question"], "context": r["context"], "answer": "x"} for r in good(9)]),
        (1, "no column question; the columns are qestion, context, answer", "data.columns.question=qestion"),
    ),
    "missing column with another name": (
        lines([{"instruction": "x", "input": "y", "output": "z"}]),
        (1, "no column question, context, answer", "data.columns.answer=output"),
    ),
    "missing column with a name unlike any": (
        lines([{"question": "x", "context": "y", "foo": "z"}]),
        (1, "no column answer; the columns are question, context, foo", "data.columns.answer=NAME"),
    ),
    "column missing in one row": (
        lines([*good(4), {"question": "x", "context": "y"}]),
        (5, "no column answer (this row has question, context)", "Correct these rows or delete them"),
    ),
    "empty file": (b"", (1, "the file is empty", "data.path=FILE")),
    "only blank lines": (b"\n  \n\n", (1, "the file is empty", "data.path=FILE")),
    "null field": (
        lines([*good(2), {"question": None, "context": "y", "answer": "z"}]),
        (3, "question is null", "Fill the empty fields"),
    ),
    "empty field": (
        lines([*good(2), {"question": "x", "context": "y", "answer": " \n"}]),
        (3, "answer is empty", "Fill the empty fields"),
    ),
    "null row": (lines([*good(2), None]), (3, "null, not an object", "Each row must be an object")),
    "row that is a list": (
        lines([*good(2), ["x"]]),
        (3, "a list (['x']), not an object", "must be an object"),
    ),
    "not UTF-8": (
        lines(good(2)) + '{"question": "é", "context": "c", "answer": "a"}\n'.encode("latin-1"),
        (3, "not UTF-8 (byte 0xe9", "Other lines are UTF-8: correct or delete these"),
    ),
    "UTF-16": (
        lines(good(2)).decode().encode("utf-16"),
        (1, "UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8"),
    ),
    "cut off": (lines(good(3))[:-20], (3, "broken JSON (", "copy the file again if it is incomplete")),
    "no JSON at all": (lines(good(2)) + b"hello\n", (3, "broken JSON (", "one object per line")),
    "deep nesting": (lines(good(2)) + b"[" * 200_000, (3, "broken JSON (", "Correct or delete these lines")),
    "mixed types": (
        lines([*good(2), {"question": "x", "context": "y", "answer": 42}]),
        (3, "answer is a number (42), not text", "Write every answer as text"),
    ),
    "object for text": (
        lines([*good(2), {"question": {"text": "x"}, "context": "y", "answer": "z"}]),
        (3, "question is an object", "Write every question as text"),
    ),
    "lone surrogate": (
        lines(good(2)) + b'{"question": "\\ud800", "context": "y", "answer": "z"}',
        (3, "question contains half a character", "Correct these rows"),
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_bad_file_is_refused_with_file_line_and_remedy(tmp_path: Path, name: str, compressed: bool) -> None:
    content, (line, problem, remedy) = BAD[name]
    path = tmp_path / ("train.jsonl.gz" if compressed else "train.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError) as caught:
        data.load(config(path), TASK)
    message = str(caught.value)
    for part in (str(path), f"line {line}:", problem, remedy):
        assert part in message


OTHER_FORMATS = {
    "list with a broken object": (
        "rows.json",
        b'[\n{"question": "x", "context": "c", "answer": "a"},\n{"question" "y"}\n]',
        "line 3: broken JSON",
    ),
    "list cut off": ("rows.json", b'[\n{"question": "x", "context": "c",', "line 2: broken JSON"),
    "list without comma": (
        "rows.json",
        b'[{"question": "x", "context": "c", "answer": "a"}\n{"a": 2}]',
        "line 2: broken JSON",
    ),
    "list of texts": ("rows.json", b'[\n"a",\n"b"\n]', "line 2: text (a), not an object"),
    "list not UTF-8": ("rows.json", b'[\n{"question": "\xe9"}]', "line 2: not UTF-8"),
    "csv with a short row": ("rows.csv", b"question,context,answer\na,b,c\nx,y\n", "line 3: 2 fields"),
    "csv that ends in a quote": ("rows.csv", b'question,context,answer\na,b,"c\n', "line 2: broken CSV"),
    "csv not UTF-8": ("rows.csv", b"question,context,answer\na,b,\xe9\n", "line 2: not UTF-8"),
    "csv empty field": ("rows.csv", b"question,context,answer\na,b,c\n\na,b,\n", "line 4: answer is empty"),
    "csv of the header alone": ("rows.csv", b"question,context,answer\n", "the file is empty"),
    "damaged archive": ("rows.jsonl.gz", gzip.compress(lines(good(500)))[:-40], "damaged or incomplete"),
    "no archive": ("rows.jsonl.gz", b"plain", "line 1: broken JSON"),
    "no parquet": ("rows.parquet", b"plain", "not a readable Parquet file"),
    "unknown format": ("rows.txt", b"plain", "unknown file format. Use one of .jsonl"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_are_refused_with_their_place_too(tmp_path: Path, name: str) -> None:
    file, content, problem = OTHER_FORMATS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.load(config(tmp_path / file), TASK)
    assert str(tmp_path / file) in str(caught.value)
    assert problem in str(caught.value)


def test_a_parquet_fault_names_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [*good(3), {"question": "x", "context": "y", "answer": None}])
    with pytest.raises(DataError, match="row 4: answer is null"):
        data.load(config(path), TASK)


def test_the_first_five_faults_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    rows = [*good(10), *({"question": "x", "context": "y", "answer": i} for i in range(8)), None]
    (tmp_path / "rows.jsonl").write_bytes(lines(rows) + b"{\n")
    with pytest.raises(DataError) as caught:
        data.load(config(tmp_path / "rows.jsonl"), TASK)
    message = str(caught.value)
    assert "10 of 20 rows cannot be used" in message
    assert [n for n in range(1, 21) if f"line {n}:" in message] == [11, 12, 13, 14, 15]
    assert "and 5 more" in message


def test_a_misspelt_path_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", good(4))
    with pytest.raises(DataError, match=r"does not exist\. Did you mean .*train\.jsonl\?"):
        data.load(config(tmp_path / "trian.jsonl"), TASK)


def test_a_folder_without_train_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", good(4))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no training file.*it holds notes.txt, test.jsonl") as caught:
        data.load(config(tmp_path), TASK)
    assert "data.path=FILE" in str(caught.value)


def test_two_copies_of_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", good(4))
    write(tmp_path / "train.csv", good(4))
    with pytest.raises(DataError, match=r"train.csv and train.jsonl look like two copies"):
        data.load(config(tmp_path), TASK)


def test_a_group_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    rows = [{**row, "database": "d"} for row in good(4)]
    with pytest.raises(DataError, match=r"no column databse") as caught:
        data.load(config(write(tmp_path / "r.jsonl", rows), columns=ColumnsConfig(group="databse")), TASK)
    assert "data.columns.group=database" in str(caught.value)


def test_ten_thousand_rows_are_checked_within_ten_seconds(tmp_path: Path) -> None:
    rows = good(10_000)
    rows[-1] = {**rows[-1], "answer": None}
    path = write(tmp_path / "rows.jsonl", rows)
    began = time.process_time()
    with pytest.raises(DataError, match="line 10,000: answer is null"):
        table.load(config(path), TASK)
    assert time.process_time() - began < 10


def test_real_rows_are_read_as_they_are(shared: Callable[[str], Path]) -> None:
    folders = {shared(f"data/sql_create_context/{name}.jsonl.gz").parent for name in ("train", "test")}
    splits = data.load(config(folders.pop(), validation=200), TASK)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (19_800, 200, 2_012)
    assert not {row.group for row in splits.train} & {row.group for row in splits.validation}
    assert any(note.startswith("test: 28 of its 1,942 contexts") for note in splits.notes)


@pytest.mark.parametrize("name", ["rasbt_instructions", "llamafactory_alpaca_en", "tatsu_alpaca_first102"])
def test_real_alpaca_files_work_with_their_column_names(shared: Callable[[str], Path], name: str) -> None:
    columns = ColumnsConfig(question="instruction", context="input", answer="output")
    path = shared(f"data/alpaca/{name}.jsonl.gz")
    splits = data.load(config(path, columns=columns, prompt="{question}\n", validation=0.05), TASK)
    assert len(splits.train) > 80


def test_chat_data_is_refused_before_anything_is_read_into_a_prompt(shared: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="no column question, context, answer; the columns are conversations, tools"):
        data.load(config(shared("data/multiturn/glaive_toolcall_en_sharegpt.jsonl.gz")), TASK)


@pytest.mark.parametrize(("rows", "validation", "test_rows"), [(50, 7, 9), (40, 0.1, None)])
def test_generated_rows_have_schemas_of_their_own_in_each_split(
    rows: int, validation: float, test_rows: int | None
) -> None:
    cfg = DataConfig(
        name="s",
        source="sql_synth",
        train_rows=rows,
        validation=validation,
        test_rows=test_rows,
        test_size=0.2,
    )
    splits = data.load(cfg, TASK)
    sizes = (len(splits.train), len(splits.validation), len(splits.test))
    assert sizes == ((50, 7, 9) if rows == 50 else (40, 4, 8))
    groups = [{row.group for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert splits.sha256 == data.load(cfg, TASK).sha256


def test_loading_imports_no_torch(run_python: Callable[[str], str]) -> None:
    assert run_python("import sys, ftlab.data, ftlab.data.encode; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_field_beyond_the_limit_is_refused_with_its_place_and_size(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "é" * n, "context": "t", "answer": "a"} for n in (1, 500_001)]
    file = tmp_path / f"r.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pandas

        table = pandas.DataFrame(rows)
        table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
    with pytest.raises(DataError) as error:
        data.load(DataConfig(name="t", source="table", path=str(file), validation=1, test_size=1), TASK)
    place = {"jsonl": "line 2", "csv": "line 3", "parquet": "row 2"}[suffix]
    assert str(error.value).splitlines() == [
        f"{file}: 1 of 2 rows cannot be used",
        f"  {place}: question has 1,000,002 bytes, more than data.max_field_bytes=1000000",
        "Shorten these fields or delete the rows, or allow them with data.max_field_bytes=N.",
    ]


def test_the_limit_of_a_field_can_be_raised(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    rows = [{"question": "q" * 1_000_001 + str(i), "context": f"t{i}", "answer": "a"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig(name="t", source="table", path=str(file), validation=1, test_size=1, max_field_bytes=2_000_000)
    assert len(data.load(cfg, TASK).train) == 2
