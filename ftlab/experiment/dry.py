"""Shows what a run would do, without loading weights."""

from ftlab import models, weights
from ftlab.composition import Composition
from ftlab.experiment.prepare import prepare
from ftlab.terminal import Terminal
from ftlab.train.batches import RowOrder


def dry_run(composition: Composition, terminal: Terminal) -> None:
    """Read the data and print what training would do; loads no weights and writes nothing.

    Raises:
        InputError: configuration, data or tokenizer cannot be used.
    """
    cfg = composition.config
    terminal.config(composition.tree, composition.changed)
    prepared = prepare(cfg)
    for note in (*prepared.splits.notes, *prepared.notes):
        terminal.note(note)
    for warning in prepared.warnings(cfg):
        terminal.warn(warning)
    rows = prepared.train.rows
    trainer = cfg.trainer
    plan = RowOrder.of(len(rows), trainer.global_batch_size, trainer.max_steps, trainer.epochs, cfg.seed)
    lengths = [row.tokens for row in rows]
    mean = sum(lengths) / len(rows)
    located = weights.find(cfg.model, what="tokenizer")
    trainable, total = models.planned_parameters(models.skeleton(located, cfg.model.trust_remote_code), cfg.lora)
    micro = trainer.micro_batch_size
    for line in (
        f"rows        train {len(rows):,} ({prepared.train.truncated} truncated, {prepared.train.dropped} dropped), "
        f"validation {len(prepared.validation.rows):,}, test {len(prepared.test.rows):,}",
        f"tokens      {mean:.0f} per row on average, {max(lengths):,} at most; "
        f"{100 * sum(row.trained for row in rows) / sum(lengths):.0f} % trained",
        f"batch       {trainer.global_batch_size} rows per step "
        f"(about {mean * trainer.global_batch_size:,.0f} tokens), micro-batch {micro}"
        + ("" if micro == "auto" else f" x {trainer.global_batch_size // int(micro)} accumulated"),
        f"steps       {plan.steps:,} = {plan.epochs:.2f} epochs; evaluation every {cfg.eval.every}, "
        f"checkpoint every {trainer.save_every}",
        f"parameters  {trainable:,} of {total:,} trained",
        f"run_dir     {cfg.run_dir} (not written: dry run)",
    ):
        terminal.note(line)
