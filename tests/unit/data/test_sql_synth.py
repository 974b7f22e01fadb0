"""sql_synth: the same rows each time, schemas of its own in every split, and answers that run on the rows."""

import re
import sqlite3

import pytest

from ftlab.data import sql_synth

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {split: sql_synth.generate(split, 600) for split in SPLITS}


def test_a_row_has_what_a_prompt_and_a_score_need(rows):
    for row in rows["train"]:
        assert set(row) == {"id", "question", "context", "answer", "db_id"}
        assert row["question"][-1] in ".?"
        assert row["question"][0].isupper()
        assert re.fullmatch(r"CREATE TABLE \w+ \([^()]+\)(; CREATE TABLE \w+ \([^()]+\))*", row["context"])
        assert not row["answer"].endswith(";")
        assert "'" not in row["answer"]


def test_the_seed_decides_the_questions_and_more_rows_only_append():
    assert sql_synth.generate("test", 40, seed=3) == sql_synth.generate("test", 90, seed=3)[:40]
    assert sql_synth.generate("test", 40, seed=3) != sql_synth.generate("test", 40, seed=4)
    assert sql_synth.table_rows("music_0") == sql_synth.table_rows("music_0")


def test_ids_are_unique_and_no_question_is_asked_twice_of_a_schema(rows):
    for made in rows.values():
        assert len({row["id"] for row in made}) == len(made)
        assert len({(row["question"], row["db_id"]) for row in made}) == len(made)


def test_splits_share_no_table_and_no_list_of_columns():
    nouns, columns, contexts = {}, {}, {}
    for split in SPLITS:
        tables = [table for schema in sql_synth.schemas(split) for table in schema.tables]
        nouns[split] = {table.noun for table in tables}
        columns[split] = {frozenset(column.name for column in table.columns) for table in tables}
        contexts[split] = {schema.context for schema in sql_synth.schemas(split)}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not nouns[a] & nouns[b]
        assert not columns[a] & columns[b]
        assert not contexts[a] & contexts[b]
    assert len(contexts["train"]) >= 100


def test_test_schemas_hold_columns_that_training_never_names():
    names = {
        split: {c.name for schema in sql_synth.schemas(split) for table in schema.tables for c in table.columns}
        for split in SPLITS
    }
    assert len(names["test"] - names["train"]) >= 30


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_returns_rows_on_its_database(rows, split):
    for row in rows[split]:
        connection = sql_synth.database(row["db_id"])
        result = connection.execute(row["answer"]).fetchall()
        connection.close()
        assert result, row
        assert result != [(None,)], row


def test_the_context_of_a_row_is_the_schema_of_its_database(rows):
    for row in rows["test"][:50]:
        empty = sqlite3.connect(":memory:")
        for statement in row["context"].split("; "):
            empty.execute(statement)
        assert empty.execute(row["answer"]).description


def test_no_text_value_is_the_name_of_a_column(rows):
    """SQLite would read such a value in double quotes as the column."""
    for split in SPLITS:
        for schema in sql_synth.schemas(split):
            names = {name.lower() for name in re.findall(r"\w+(?= VARCHAR| INTEGER)", schema.context)}
            values = {
                str(v).lower() for made in sql_synth.table_rows(schema.db_id).values() for row in made for v in row
            }
            assert not names & values, schema.db_id


def test_questions_of_many_kinds(rows):
    """Single tables and joins, conditions, groups, nested selects: none crowds out the others."""
    for made in rows.values():
        share = {
            word: sum(word in row["answer"] for row in made) / len(made)
            for word in (" JOIN ", " WHERE ", "GROUP BY", "ORDER BY", "HAVING", "DISTINCT", "LIKE", "(SELECT", "COUNT(")
        }
        assert all(0.01 < part < 0.7 for part in share.values()), share
        assert 0.2 < share[" JOIN "] < 0.5


def test_a_question_names_the_values_of_its_answer(rows):
    for row in rows["test"]:
        for value in re.findall(r'"%?([^"%]+)%?"', row["answer"]):
            assert value in row["question"]


def test_an_unknown_split_or_database_names_the_known_ones():
    with pytest.raises(ValueError, match="train, validation, test"):
        sql_synth.generate("dev", 1)
    with pytest.raises(ValueError, match="no_such_db"):
        sql_synth.database("no_such_db")
