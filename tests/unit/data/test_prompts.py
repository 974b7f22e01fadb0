from collections.abc import Callable
from typing import Any

import pytest

from ftlab.data.prompts import PromptTokenizer, kept_tail, render, shows

TEMPLATE = "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n"


def test_rendering_is_one_pass() -> None:
    assert render("{context}|{question}", "what is {context}?", "{question} {{x}}") == (
        "{question} {{x}}|what is {context}?"
    )


def test_doubled_braces_are_braces() -> None:
    assert render('{{"q": "{question}"}}', "why {}", "") == '{"q": "why {}"}'


@pytest.mark.parametrize(
    "template",
    [TEMPLATE, "Q {question} over {{{context}}} answer:", "{question}", "{context} {question} {question}"],
)
def test_the_kept_tail_ends_the_prompt_and_begins_with_the_question(template: str) -> None:
    tail = "".join(text for text, _ in kept_tail(template, "how many {x}?", "CREATE TABLE {t}"))
    assert render(template, "how many {x}?", "CREATE TABLE {t}").endswith(tail)
    assert tail.startswith("how many {x}?")


def test_only_a_field_makes_a_template_show_the_schema() -> None:
    assert shows(TEMPLATE, "context")
    assert not shows("{{context}} {question}", "context")


@pytest.mark.parametrize(("kind", "begins"), [("bos", True), ("bos_eos", True), ("plain", False), ("no_eos", False)])
def test_the_begin_marker_is_put_where_the_tokenizer_puts_it_and_no_end_marker(
    make_tokenizer: Callable[[str], Any], kind: str, begins: bool
) -> None:
    tokenizer = make_tokenizer(kind)
    ids = PromptTokenizer(tokenizer, TEMPLATE).prompts([("How many?", "CREATE TABLE t (a INTEGER)")])[0]
    assert (ids[0] == tokenizer.bos_token_id) == begins
    assert ids.count(tokenizer.bos_token_id) == int(begins)
    assert 1 not in ids, "no end marker"
    text = tokenizer.decode(ids[int(begins) :])
    assert text == render(TEMPLATE, "How many?", "CREATE TABLE t (a INTEGER)")


def test_a_begin_marker_in_the_template_is_not_doubled(tokenizer: Any) -> None:
    marked, plain = PromptTokenizer(tokenizer, "<s>{question}"), PromptTokenizer(tokenizer, "{question}")
    assert marked.prompts([("a", "")]) == plain.prompts([("a", "")])


def test_many_prompts_are_tokenised_as_each_alone(tokenizer: Any) -> None:
    asked = [("How many singers?", "CREATE TABLE singer (a INTEGER)"), ("ä \u2028?", "x" * 3000), ("", "")]
    together = PromptTokenizer(tokenizer, TEMPLATE).prompts(asked)
    assert together == [PromptTokenizer(tokenizer, TEMPLATE).prompts([row])[0] for row in asked]
