"""Pretrain the embedded base model: it knows schemas and SQL, but has never seen which query answers a question.

    python -m ftlab.tiny.pretrain --data shared/data/sql_create_context/train.jsonl.gz --out /tmp/tiny

Documents are English questions, schemas, schemas with a query, and copying exercises on all of them. No document
contains both a question and a query, and every document is a training row of its own (no packing). The base therefore
scores near zero, and connecting questions with queries is left to fine-tuning. ``check`` asserts this.

Sources: the ``train`` schemas of ``ftlab.data.sql_synth`` and the WikiSQL rows (BSD-3-Clause, (c) 2017 Salesforce
Research) of the ``--data`` file; its Spider-derived rows (CC-BY-SA-4.0) are left out.
"""

import argparse
import gzip
import json
import math
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftlab.data import sql_synth

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MAX_TOKENS = 320
"""Documents with more tokens are left out."""
SHARDS = 16
"""The number of parts in which documents are generated, by one process per core."""

# Every linear layer's in_features is a multiple of 64, the block of bitsandbytes' NF4.
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 320,
    "intermediate_size": 832,
    "num_hidden_layers": 5,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
}

PretrainRow = dict[str, str]
Section = tuple[str, str]


@dataclass(frozen=True)
class Document:
    """One pretraining text, with the sections of the fine-tuning prompt: ``### Schema:``, ``### Question:``, ..."""

    kind: str
    sections: tuple[Section, ...]

    @property
    def text(self) -> str:
        """The text of the document, as the model reads it."""
        return "\n\n".join(f"### {name}:\n{body}" for name, body in self.sections)


def wikisql_rows(path: Path) -> list[PretrainRow]:
    """Return the ``wikisql-converted`` rows of a gzipped JSON Lines file. The licence of the other rows must not apply
    to the model."""
    if not path.exists():
        raise SystemExit(
            f"--data {path}: no such file. It is train.jsonl.gz in the sql-create-context format with a `source` "
            'column, of which the rows with source="wikisql-converted" are read; README.md beside this script says '
            "where they come from"
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["source"] == "wikisql-converted"]


def documents(wikisql: Sequence[PretrainRow], count: int, seed: int) -> Iterator[Document]:
    """Yield ``count`` documents of random kinds. A document contains a row's question or its query, never both."""
    rng = Random(f"documents/{seed}")
    synth = sql_synth.generate("train", count // 2, seed=1000 + seed)
    words = _Words.of(wikisql)
    for _ in range(count):
        row = rng.choice(synth if rng.random() < 0.7 else wikisql)
        # Invented names in familiar sentences teach the model to copy names instead of memorising them.
        yield rng.choice(KINDS)(words.renamed(row, rng) if rng.random() < 0.9 else row, words, rng)


def _shard(wikisql: Sequence[PretrainRow], count: int, seed: int) -> list[Document]:
    return list(documents(wikisql, count, seed))


class HeldOut:
    """Texts that no document may contain: rows of test files, and all validation and test schemas."""

    def __init__(self, rows: Sequence[PretrainRow]) -> None:
        held = [schema for split in ("validation", "test") for schema in sql_synth.schemas(split)]
        self.schemas = {schema.context for schema in held}
        self.tables = {table.sql for schema in held for table in schema.tables}
        self.questions = {row["question"] for row in rows}
        self.answers = {(row["context"], row["answer"]) for row in rows}

    def __contains__(self, document: Document) -> bool:
        bodies = {body for _, body in document.sections}
        parts = {part for name, body in document.sections if name == "Schema" for part in body.split("; ")}
        by_name = dict(document.sections)
        answered = (by_name.get("Schema"), by_name.get("SQL")) in self.answers
        return bool(bodies & self.schemas or parts & self.tables or bodies & self.questions or answered)


def check(texts: Sequence[Document], held_out: HeldOut) -> None:
    """Assert for these documents what the model card says about the data."""
    for document in texts:
        names = {name for name, _ in document.sections}
        assert not names >= {"Question", "SQL"}, f"a question with a query: {document.text}"
        assert not any("### " in body for _, body in document.sections), document.text
        assert document not in held_out, f"held-out text: {document.text}"


# --- kinds of documents ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Words:
    """Words and literal values of the WikiSQL rows, which serve as new names."""

    words: tuple[str, ...]
    values: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[PretrainRow]) -> "_Words":
        words = {word.lower() for row in rows for word in re.findall(r"[A-Za-z]{3,10}", row["question"])}
        values = {value for row in rows for value in re.findall(r'"([^"%]+)"', row["answer"])}
        return cls(tuple(sorted(words)), tuple(sorted(value for value in values if len(value) < 25)))

    def invented(self, rng: Random) -> str:
        """Return a word, or one made of the halves of two: too many to memorise."""
        a, b = rng.choice(self.words), rng.choice(self.words)
        return _stem(a if rng.random() < 0.4 else a[: len(a) // 2 + 1] + b[len(b) // 2 :])

    def renamed(self, row: PretrainRow, rng: Random) -> PretrainRow:
        """Return ``row`` with most words of its table and column names and all its text values replaced
        consistently."""
        parts = {_stem(word) for name in _names(row["context"]) for word in name.lower().split("_")}
        stems = sorted(parts - {"id", ""})
        names = {stem: self.invented(rng) for stem in stems if rng.random() < 0.8}
        values = {value: rng.choice(self.values) for value in re.findall(r'"%?([^"%]+)%?"', row["answer"])}

        def replace(match: re.Match[str]) -> str:
            word = match[0]
            if word in values or word.isupper():  # keywords, types and aliases are in capitals
                return values.get(word, word)
            stem = _stem(word.lower())
            new = names.get(stem, stem)
            if new == stem:
                return word
            new = new if stem == word.lower() else sql_synth.plural(new)
            return new.capitalize() if word[0].isupper() else new

        literals = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
        pattern = re.compile(rf"(?<!\w)(?:{literals})(?!\w)|[A-Za-z]+" if literals else r"[A-Za-z]+")
        return {part: pattern.sub(replace, row[part]) for part in ("question", "context", "answer")}


def _question(row: PretrainRow, words: _Words, rng: Random) -> Document:
    asked = ("Question", row["question"])
    if rng.random() < 0.3:
        return Document("question", (asked,))
    return Document("schema and question, copied", (("Schema", row["context"]), asked, asked))


def _schema(row: PretrainRow, words: _Words, rng: Random) -> Document:
    schema = ("Schema", row["context"])
    return Document("schema, copied", (schema, schema)) if rng.random() < 0.8 else Document("schema", (schema,))


def _query(row: PretrainRow, words: _Words, rng: Random) -> Document:
    schema, query = ("Schema", row["context"]), ("SQL", row["answer"])
    if rng.random() < 0.2:
        return Document("schema and query, copied", (schema, query, query))
    return Document("schema and query", (schema, query))


def _links(row: PretrainRow, words: _Words, rng: Random) -> Document:
    """A document with words and values in one section, and their SQL spelling in the next: ``net worth`` ->
    ``Net_Worth``."""
    names = _names(row["context"])
    pairs = [(_said(name, rng), name) for name in rng.sample(names, min(len(names), rng.randint(1, 4)))]
    for _ in range(rng.randint(0, 2)):
        number, text = str(rng.randint(0, 10 ** rng.randint(1, 5))), rng.choice(words.values)
        pairs.append(rng.choice(((number, number), (text, f'"{text}"'), (text, f'"{text}"'))))
    rng.shuffle(pairs)
    said, spelt = zip(*pairs, strict=True)
    sections = ("Schema", row["context"]), ("Words", ", ".join(said)), ("Spelling", ", ".join(spelt))
    return Document("words, spelt as in the schema", sections)


def _bag(row: PretrainRow, words: _Words, rng: Random) -> Document:
    """A document with a query after the names and values that it uses, shuffled: without wording, order, operators and
    join keys."""
    joined = set(re.findall(r"\w+", " ".join(re.findall(r" ON T1\.\w+ = T2\.\w+", row["answer"]))))
    used = set(re.findall(r"\w+", re.sub(r'"[^"]*"', "", row["answer"]))) - joined
    bag = [_said(name, rng) for name in dict.fromkeys(_names(row["context"])) if name in used]
    bag += [text or number for text, number in re.findall(r'"%?([^"%]+)%?"|\b(\d+)\b', row["answer"])]
    rng.shuffle(bag)
    sections = ("Schema", row["context"]), ("Words", ", ".join(bag)), ("SQL", row["answer"])
    return Document("shuffled words and query", sections)


KINDS = (_question, _question, _schema, _query, _query, _links, _links, _bag, _bag)
"""Functions that make documents. One that is listed twice makes twice as many."""


def _said(name: str, rng: Random) -> str:
    """Return a name as people say it: lower case, spaces, sometimes the other grammatical number."""
    said = name.replace("_", " ").lower()
    if rng.random() < 0.6:
        return said
    return _stem(said) if _stem(said) != said else sql_synth.plural(said)


def _stem(word: str) -> str:
    """The singular of a regular noun."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _names(context: str) -> list[str]:
    """Return the names of tables and columns of a schema, in order."""
    return re.findall(r"(?<=CREATE TABLE )\w+|\w+(?= VARCHAR| INTEGER)", context)


# --- tokenizer ------------------------------------------------------------------------------------------------------

_KEYWORDS = (
    "CREATE TABLE|VARCHAR|INTEGER|SELECT DISTINCT|SELECT|FROM|WHERE NOT|WHERE|AS T1 JOIN|AS T2 ON|AND|OR|ORDER BY|"
    "GROUP BY|HAVING|DESC LIMIT|DESC|LIMIT|LIKE|BETWEEN|INTERSECT|EXCEPT|UNION|IN|AS"
)
# A word has the same tokens after a space, a dot, a bracket or a quote, so that it can be copied token by token. A
# space is therefore a token of its own, unless it belongs to a keyword of SQL or to punctuation. A digit always is.
_PIECES = (
    rf" ?\b(?:{_KEYWORDS})\b ?|### \w+:\n|\n\n|[0-9]|[A-Z]?[a-z]+|[A-Z]+|, |; |\. | [=<>]+ | \(|\s|[^\sA-Za-z0-9]+?"
)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. ``tokenizer(text)`` adds BOS at the start, but no EOS at the end."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=SHAPE["vocab_size"],
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=1024, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


# --- training -------------------------------------------------------------------------------------------------------


def batches(rows: list[list[int]], size: int, pad: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``(input_ids, labels)`` without end, both ``(size, longest)`` int64, right-padded, of similar lengths."""
    rng = Random(f"batches/{seed}")
    while True:
        rng.shuffle(rows)
        pools = [sorted(rows[i : i + 32 * size], key=len) for i in range(0, len(rows), 32 * size)]
        chunks = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            longest = max(map(len, chunk))
            ids = torch.tensor([row + [pad] * (longest - len(row)) for row in chunk])
            yield ids, ids.masked_fill(ids == pad, -100)  # pad is a token of its own: EOS stays a label


def train(model: LlamaForCausalLM, rows: list[list[int]], steps: int, batch: int, lr: float, seed: int) -> None:
    """Train with AdamW, 5 % warm-up and cosine decay to zero; with bf16 autocast on a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=device == "cuda")
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    started, tokens = time.perf_counter(), 0
    stream = batches(rows, batch, model.config.pad_token_id, seed)
    for step, (ids, labels) in zip(range(1, steps + 1), stream, strict=False):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            # Padding is on the right, where causal attention never looks: no mask is needed, and the fast kernel is
            # used.
            loss = model(input_ids=ids.to(device, non_blocking=True), labels=labels.to(device, non_blocking=True)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        if step % 100 == 0 or step in (1, steps):
            seconds = time.perf_counter() - started
            speed = tokens / seconds
            print(f"step {step}/{steps} loss {loss.item():.3f} {speed:,.0f} tokens/s {seconds:.0f} s", flush=True)


def main() -> None:
    """Build the documents, check them, train tokenizer and model, and save both in ``--out``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl.gz with WikiSQL rows")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch", type=int, default=256, help="documents a step")
    parser.add_argument("--documents", type=int, default=480_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    wikisql = wikisql_rows(options.data)
    test_file = options.data.with_name("test.jsonl.gz")
    test_rows = wikisql_rows(test_file) if test_file.exists() else []
    test_rows += [row for split in ("validation", "test") for row in sql_synth.generate(split, 2000)]
    held_out = HeldOut(test_rows)
    shards = [(wikisql, options.documents // SHARDS, options.seed * SHARDS + i) for i in range(SHARDS)]
    with multiprocessing.Pool() as pool:
        made = [document for shard in pool.starmap(_shard, shards) for document in shard]
    # Invented names sometimes equal held-out ones by chance. Such documents are left out.
    texts = [document for document in made if document not in held_out]
    check(texts, held_out)
    for kind, count in sorted(Counter(document.kind for document in texts).items()):
        print(f"{count:>8,} {kind}")
    print(f"{len(texts):>8,} documents, {len(made) - len(texts):,} left out; none pairs a question with a query")
    print(f"none holds one of {len(test_rows):,} test rows or a held-out schema")

    plain = [*wikisql, *sql_synth.generate("train", 10_000, seed=1000 + options.seed)]
    tokenizer = train_tokenizer([row[part] for row in plain for part in ("context", "question", "answer")])
    encoded = tokenizer([document.text + EOS for document in texts])["input_ids"]
    rows = [ids for ids in encoded if len(ids) <= MAX_TOKENS]
    print(f"{sum(map(len, rows)):,} tokens in {len(rows):,} documents; {len(encoded) - len(rows):,} too long")

    torch.manual_seed(options.seed)
    config = LlamaConfig(
        **SHAPE,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=SHAPE["hidden_size"] ** -0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters")
    train(model, rows, options.steps, options.batch, options.lr, options.seed)
    model.to("cpu", torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
