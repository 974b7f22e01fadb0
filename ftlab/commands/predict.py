"""python -m ftlab predict run=DIR context=TEXT question=TEXT: a tuned run's answer, alone on stdout.

run=DIR             a run folder, or the name of one in outputs/
context, question   what the model is asked; other tasks may have other columns
input=FILE          JSON lines with these columns instead: prints one line per question
max_new_tokens=64   the longest answer, in tokens; default: eval.max_new_tokens of the run
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ftlab import lines, tasks
from ftlab.commands import allowed_code, check_keys
from ftlab.composition import typed_from_tree
from ftlab.config import ExperimentConfig
from ftlab.data.splits import Example
from ftlab.data.table import Role
from ftlab.errors import InputError
from ftlab.out_of_memory import explain_oom
from ftlab.run_dir import RunDir, find_run, tree_of
from ftlab.tasks import Task

SHOWN = 5  # number of questions that a warning names
KEYS = ("run", "max_new_tokens", "input", "model.trust_remote_code")  # arguments besides the columns of the task


def main(arguments: dict[str, str]) -> int:
    """Print one answer per question. `input=FILE` reads JSON lines with the task's columns (question, context).

    Raises:
        InputError: an argument is missing, a file cannot be used, or the folder holds no finished run.
        TrainingError: too little GPU memory.
    """
    every = {role.name for known in tasks.usable() for role in _asking(known)}
    check_keys("predict", arguments, (*KEYS, *sorted(every)))
    if "run" not in arguments:
        raise InputError("predict needs a run: python -m ftlab predict run=DIR question=TEXT context=TEXT")
    code = allowed_code(arguments)
    folder = find_run(arguments["run"])
    cfg = typed_from_tree(tree_of(folder), code)
    task = tasks.get(cfg.data.task)
    check_keys("predict", arguments, (*KEYS, *(role.name for role in _asking(task))))
    folder.check_result("adapter" if cfg.lora.r else "model")
    new_tokens = _positive(arguments, "max_new_tokens", cfg.eval.max_new_tokens)
    cfg = replace(cfg, eval=replace(cfg.eval, max_new_tokens=new_tokens))
    asked = _asked(arguments, task, cfg.data.prompt)
    for number, fields in enumerate(asked, start=1):
        _check_size(number, fields, cfg.data.max_field_bytes)
    answers = _answers(folder, cfg, task, [task.ask(fields, str(i)) for i, fields in enumerate(asked)])
    if "input" in arguments:  # one line per question, even if an answer has several
        answers = [" ".join(answer.splitlines()) for answer in answers]
    print("\n".join(answers))
    return 0


def _asking(task: Task) -> list[Role]:
    """Return the columns of a question: all that the prompt may show."""
    return [role for role in task.roles if role.in_prompt != "never"]


def _answers(folder: RunDir, cfg: ExperimentConfig, task: Task, asked: list[Example]) -> list[str]:
    print(f"loading {cfg.model.id}, tuned in {folder.path}", file=sys.stderr, flush=True)
    from ftlab import models
    from ftlab.evaluate import answer, ready
    from ftlab.experiment import base_differs, load_finished, make_accelerator, quiet
    from ftlab.terminal import Terminal

    quiet()
    accelerator = make_accelerator(cfg)
    terminal = Terminal(sys.stderr)
    tokenizer, model, decoder, reason = load_finished(folder.path, cfg, accelerator)
    if differs := base_differs(folder.base_sha256, cfg):
        print(differs, file=sys.stderr)
    if reason:
        print(f"slower path, {reason}", file=sys.stderr)
    tokens = task.render(asked, tokenizer, cfg.data)
    prompts, unescaped = [row.prompt for row in tokens], [i for i, row in enumerate(tokens) if row.unescaped]
    _check_length(prompts, getattr(model.config, "max_position_embeddings", None))
    if unescaped:
        numbers = ", ".join(str(i + 1) for i in unescaped[:SHOWN])
        print(
            f"{len(unescaped):,} questions contain a control token (such as the EOS token) that this tokenizer cannot "
            f"encode as plain text, so the model reads the token (question {numbers}). Reword them",
            file=sys.stderr,
        )
    for line in models.check_rows(model, tokenizer, [], prompts, cfg):
        print(line, file=sys.stderr)
    fewer = f"a max_new_tokens below {cfg.eval.max_new_tokens}"
    progress = terminal.progress(len(prompts), what="predict")
    with explain_oom("predict", fewer), ready(model, decoder, accelerator) as fast, progress as bar:
        note = partial(print, file=sys.stderr)
        return answer(model, fast, tokenizer, prompts, cfg.eval, lambda done: bar.update(done, {}), note=note)


def _asked(arguments: dict[str, str], task: Task, prompt: str) -> list[dict[str, str]]:
    """Return the columns of each question, by name; those that the prompt does not show may be absent."""
    if "input" in arguments:
        return _questions(Path(arguments["input"]).expanduser(), task)
    names = [role.name for role in _asking(task)]
    missing = [role for role in _asking(task) if role.needed(prompt) and not _is_given(role, arguments)]
    if missing:
        sample = " ".join(f'{name}="{text}"' for name, text in task.sample.items())
        needs = [f"{role.name}=TEXT" + (f" ({role.name}= for none)" if role.blank else "") for role in missing]
        raise InputError(
            f"predict needs {' and '.join(needs)}, or input=FILE (JSON lines with {' and '.join(names)}): "
            f"python -m ftlab predict run=DIR {sample}"
        )
    return [{name: arguments.get(name, "") for name in names}]


def _is_given(role: Role, arguments: dict[str, str]) -> bool:
    return role.name in arguments if role.blank else bool(arguments.get(role.name))


def _check_size(number: int, fields: dict[str, str], limit: int) -> None:
    """Refuse a text of more than `limit` bytes: to tokenise it takes hundreds of times its size in memory."""
    for name, text in fields.items():
        size = len(text.encode(errors="surrogatepass"))
        if size > limit:
            raise InputError(
                f"question {number}: its {name} has {size:,} bytes, but the run reads at most {limit:,} "
                "(data.max_field_bytes): shorten it"
            )


def _check_length(prompts: Sequence[Sequence[int]], window: int | None) -> None:
    """Refuse a prompt that is longer than the model's positions: its answer would be meaningless, and the memory of
    attention grows with the square of the length."""
    number, longest = max(enumerate(map(len, prompts), start=1), key=lambda pair: pair[1])
    if window is not None and longest > window:
        raise InputError(
            f"question {number}: its prompt has {longest:,} tokens, but the model reads at most {window:,} "
            "(max_position_embeddings): shorten its context or question"
        )


def _questions(file: Path, task: Task) -> list[dict[str, str]]:
    asked = []
    needs = [role.name for role in _asking(task) if role.in_prompt == "always"]
    more = [role.name for role in _asking(task) if role.in_prompt == "may"]
    wanted = " and ".join(map(json.dumps, needs)) + (f" (and {' and '.join(map(json.dumps, more))})" if more else "")
    for number, row in lines.read(file):
        fields = {**{name: row.get(name) for name in needs}, **{name: _or_empty(row.get(name)) for name in more}}
        if not all(isinstance(text, str) for text in fields.values()):
            raise InputError(f"{file}:{number}: this line needs {wanted}, each as text in quotes")
        asked.append({name: str(text) for name, text in fields.items()})
    if not asked:
        raise InputError(f"input={file} holds no question: add one JSON object per line")
    return asked


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _positive(arguments: dict[str, str], key: str, default: int) -> int:
    text = arguments.get(key, str(default))
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{key}={text} must be a whole number of at least 1")
    return int(text)
