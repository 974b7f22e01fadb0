"""Text-to-SQL: a question over the tables of a context, answered by one query. Its scores are those of `ftlab.sql`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ftlab.config import DataConfig, ExperimentConfig
from ftlab.data.splits import Example, SourceSplits
from ftlab.data.table import Role
from ftlab.errors import ConfigError, TrainingError
from ftlab.metrics import Metric
from ftlab.tasks.completion import CompletionTask, cluster_of
from ftlab.tasks.task import Judgement, Source

if TYPE_CHECKING:
    from ftlab.sql.verdict import Verdict

SYNTH_ROWS = 4000  # training rows that are generated unless data.train_rows is set


def rate(name: str, title: str, help: str, field: str, short: str = "", **more: Any) -> Metric:
    """Declare a rate of rows, for which higher is better."""
    common: dict[str, Any] = {"direction": "maximize", "unit": "rate", "interval": True, "objective": True}
    return Metric(name, title, help, short=short, field=field, **common, **more)


class SqlTask(CompletionTask):
    """Connects runs with `ftlab.sql`, which knows nothing of runs."""

    name = "sql"
    title = "text-to-SQL"
    eval_keys = ("databases", "extract_sql", "rows_dir")
    cluster = "schema"
    headline = "sql_exact_match"
    metrics = (
        rate(
            "sql_string_match",
            "string match",
            "share of answers that equal the gold text, apart from white space",
            "exact_string",
        ),
        rate(
            "sql_ast_match",
            "AST match (headline)",
            "share of answers whose canonical tree equals that of the gold query",
            "ast_equal",
            "AST",
            by_bucket=True,
        ),
        rate(
            "sql_exact_match",
            "exact match",
            "the headline: the AST match",
            "ast_equal",
            "AST",
            hidden_by="sql_ast_match",
        ),
        rate(
            "sql_exec_match",
            "exec match",
            "share of answers that return the gold query's result, over the gold queries that run and return a row",
            "exec_equal",
            "exec",
            by_bucket=True,
            silent="the gold query is broken, or returned no row",
        ),
        rate("sql_valid", "valid", "share of answers that are one runnable read-only query", "valid"),
        Metric(
            "sql_gold_broken", "gold broken, rows", "gold queries that cannot run", unit="count", field="gold_broken"
        ),
        Metric(
            "sql_vacuous",
            "gold vacuous, rows",
            "gold queries that returned no row on any database tried",
            unit="count",
            field="vacuous",
        ),
    )
    sample = MappingProxyType(
        {
            "context": "CREATE TABLE city (name TEXT, people INT)",
            "question": "Which cities have more than 1000 people?",
        }
    )
    roles = (
        Role("question", ("instruction", "sql_prompt", "prompt", "utterance", "input", "text"), "always"),
        Role("context", ("schema", "sql_context", "create_table", "full_context", "input"), "may"),
        Role("answer", ("sql", "query", "output", "response", "completion", "target"), "never"),
    )

    @property
    def recorded(self) -> tuple[str, ...]:  # type: ignore[override]
        from ftlab.sql.rates import RECORDED

        return RECORDED

    @property
    def buckets(self) -> tuple[str, ...]:  # type: ignore[override]
        from ftlab.sql.verdict import BUCKETS

        return BUCKETS

    @property
    def sources(self) -> Mapping[str, Source]:
        return {"sql_synth": synthetic}

    def check_files(self, cfg: ExperimentConfig) -> None:
        """Check that the folder of real rows exists, before anything is scored."""
        from ftlab.sql.real_rows import fault

        problem = fault(Path(cfg.eval.rows_dir).expanduser()) if cfg.eval.rows_dir else None
        if problem:
            raise ConfigError(f"eval.rows_dir={cfg.eval.rows_dir} {problem}, or eval.rows_dir=null")

    def counts(self, metric: Metric, record: Mapping[str, Any]) -> bool:
        """Whether a row counts for a metric; with a broken or vacuous gold it does not count for execution match."""
        return super().counts(metric, record) and not (metric.field == "exec_equal" and record["vacuous"])

    def judge(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        cfg: ExperimentConfig,
        on_row: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """Judge each answer on `eval.databases` generated databases and those of `eval.rows_dir`.

        Raises:
            TrainingError: the scoring process cannot be started.
        """
        from ftlab.sql.rates import recorded

        judgements = []
        for example, answer in zip(examples, answers, strict=True):
            on_row()
            verdict = verdict_of(example, answer, cfg)
            judgements.append(self.judged(recorded(verdict), cluster_of(example), verdict.buckets))
        return judgements

    def reward(self, example: Example, answer: str, cfg: ExperimentConfig) -> float:
        """Return 1 if the answer equals the gold query by its tree or by its results, else 0."""
        verdict = verdict_of(example, answer, cfg)
        return float(verdict.ast_equal or (bool(verdict.exec_equal) and not verdict.vacuous))


def verdict_of(example: Example, answer: str, cfg: ExperimentConfig) -> "Verdict":
    """Return the verdict of `ftlab.sql` on an answer.

    Raises:
        TrainingError: the scoring process cannot be started.
    """
    from ftlab.sql.extract import extract
    from ftlab.sql.real_rows import rows_file
    from ftlab.sql.scorer import ScorerError, shared_scorer

    scorer = shared_scorer()
    scorer.databases = cfg.eval.databases
    folder = Path(cfg.eval.rows_dir).expanduser() if cfg.eval.rows_dir else None
    pred = extract(answer) if cfg.eval.extract_sql else answer
    try:
        return scorer.score(example.answer, pred, example.context, rows_file=rows_file(folder, example.group))
    except ScorerError as error:
        raise TrainingError(str(error)) from None


def synthetic(cfg: DataConfig) -> SourceSplits:
    """Generate all three splits; each domain of schemas belongs to one split, so nothing is taken from train."""
    from ftlab.data import sql_synth

    train = cfg.train_rows or SYNTH_ROWS
    sizes = {"train": train, "validation": _rows(cfg.validation, train)}
    sizes["test"] = cfg.test_rows or _rows(cfg.test_size, train)
    made = {name: [_example(row) for row in sql_synth.generate(name, n, cfg.split_seed)] for name, n in sizes.items()}
    notes = [f"{name}: {len(rows):,} generated rows, on schemas of no other split" for name, rows in made.items()]
    return SourceSplits(**made, notes=notes, grouped_by="db_id")


def _rows(size: float, of: int) -> int:
    return round(size) if size >= 1 else max(1, round(size * of))


def _example(row: Mapping[str, str]) -> Example:
    return Example(row["id"], row["question"], row["context"], row["answer"], row["db_id"])


TASK = SqlTask()
