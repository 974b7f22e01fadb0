"""SQL from a finished run, alone on stdout."""

import json
from pathlib import Path
from typing import Any

import pytest

QUESTION = "How many owls, 'really' (over 3)?"
CONTEXT = 'CREATE TABLE owl ("age" INT); -- ~'


def test_an_answer_is_all_that_is_printed(cli: Any, finished: Path) -> None:
    code, out, err = cli("predict", f"run={finished}", f"question={QUESTION}", f"context={CONTEXT}")
    assert code == 0
    assert err.startswith("loading ")  # the answer alone is on stdout
    assert len(out.splitlines()) >= 1
    again = cli("predict", str(finished), f"context={CONTEXT}", f"question={QUESTION}")
    assert again == (0, out, err)


def test_prediction_says_what_the_evaluation_said(cli: Any, finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        _, out, _ = cli("predict", str(finished), f"question={row['question']}", f"context={row['context']}")
        assert out == row["pred"] + "\n"


def test_many_questions_come_from_a_file(cli: Any, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "ask (1).jsonl"
    file.write_text("".join(json.dumps({"question": f"{i}?", "context": "t"}) + "\n" for i in range(5)))
    code, out, _ = cli("predict", str(finished), f"input={file}", "max_new_tokens=1")
    assert code == 0
    assert out.count("\n") == 5


def test_each_question_of_a_file_has_one_line(
    cli: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in a question, between the rows, or in an answer."""
    file = tmp_path / "ask.jsonl"
    rows = [json.dumps({"question": text}, ensure_ascii=False) for text in ("a\u2028b", "c\u0085d")]
    file.write_text("\ufeff" + "\n\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.setattr("ftlab.evaluate.answer", lambda *_, **__: ["SELECT 1\nFROM t", "SELECT 2"])
    assert cli("predict", str(finished), f"input={file}")[:2] == (0, "SELECT 1 FROM t\nSELECT 2\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["question=x"], "predict needs context=TEXT, or input=FILE"),
        (["question=x", "context="], "predict needs context=TEXT, or input=FILE"),  # SQL is asked over a schema
        (["context=x"], "question=TEXT"),
        (["question=x", "context=y", "max_new_tokens=0"], "max_new_tokens=0 must be a whole number"),
        (["question=x", "context=y", "max_new_tokens=ten"], "max_new_tokens=ten"),
        (["question=x", "context=y", "temperature=1"], "temperature= is not an argument"),
        (["input=absent.jsonl"], "absent.jsonl"),
        (["input={broken}"], "broken:2: broken JSON"),
        (["input={list}"], "list:1: not a JSON object"),
        (["input={null}"], 'null:1: this line needs "question"'),
        (["input={empty}"], "no question"),
        (["input={latin}"], "latin: line 1: UTF-16"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_is_missing_or_wrong_is_said(
    cli: Any, finished: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    texts = {"broken": b'{"question": "a"}\n{"quest', "list": b"[1]\n", "empty": b"", "latin": b"\xff\xfe\n"}
    texts["null"] = b'{"question": null}\n'
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    paths = {name: str(tmp_path / name) for name in texts}
    code, out, err = cli("predict", str(finished), *(word.format(**paths) for word in words))
    assert (code, out) == (2, "")
    assert said in err


def test_an_unfinished_run_says_so(cli: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    code, _, err = cli("predict", str(tmp_path), "question=x", "context=y")
    assert code == 2
    assert "has not finished" in err


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_a_base_that_has_changed_since_is_told(
    command: str, cli: Any, finished: Path, base_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    run, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(finished, run)
    shutil.copytree(base_folder, base)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(f"  id: {base_folder}\n", f"  id: {base}\n"))
    asked = ("question=x", "context=y") if command == "predict" else ()
    for word in ("", "has changed since the adapter was trained on it (model.safetensors)"):
        code, out, err = cli(command, f"run={run}", *asked)
        assert code == 0, err
        assert word in " ".join((out + err).split())
        assert bool(word) == ("has changed" in out + err)
        tensors = load_file(base / "model.safetensors")
        tensors["model.norm.weight"] *= 2
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def test_a_base_that_is_gone_is_one_message(cli: Any, finished: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = (run / "config.yaml").read_text()
    base = next(line for line in config.splitlines() if line.startswith("  id: "))
    (run / "config.yaml").write_text(config.replace(base, f"  id: {tmp_path}/gone"))
    code, _, err = cli("predict", str(run), "question=x", "context=y")
    assert code == 2
    assert "gone" in err
    assert "Traceback" not in err


def test_questions_go_the_fast_path_and_are_answered_as_by_plain_generation(
    cli: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftlab import evaluate
    from ftlab.experiment import result

    file = tmp_path / "ask.jsonl"
    file.write_text("".join(json.dumps({"question": f"How many {i}?", "context": "t" * i}) + "\n" for i in range(6)))
    plain, batches = evaluate.generate, []

    def counted(*arguments: Any, **options: Any) -> list[str]:
        batches.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr(evaluate, "generate", counted)
    fast = cli("predict", str(finished), f"input={file}", "max_new_tokens=8")
    assert fast[0] == 0
    assert "slower path" not in fast[2]
    assert not batches
    monkeypatch.setattr(result, "fast_path", lambda *_: (None, "the layers are of another kind"))
    slow = cli("predict", str(finished), f"input={file}", "max_new_tokens=8")
    assert batches
    assert slow[:2] == fast[:2]
    assert slow[2].endswith("slower path, the layers are of another kind\n")


@pytest.mark.parametrize(
    ("where", "phase"), [("models.result_folder.load_base", "load"), ("fast.scoring.answers", "predict")]
)
@pytest.mark.parametrize("command", ["predict", "eval"])
def test_too_little_memory_is_one_message(
    cli: Any, finished: Path, monkeypatch: pytest.MonkeyPatch, where: str, phase: str, command: str
) -> None:
    import torch

    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB is free. Of")

    monkeypatch.setattr(f"ftlab.{where}", full)
    asked = ["question=x", "context=y"] if command == "predict" else ["eval.max_rows=2"]
    code, _, err = cli(command, str(finished), *asked)
    assert code == 1
    assert "Traceback" not in err
    assert f"out of GPU memory in the phase {phase if command == 'predict' or phase == 'load' else 'evaluate'}" in err
    assert "Tried to allocate 2.00 GiB. GPU 0 has 1 GiB is free). Try: " in err


def test_a_question_beyond_the_models_window_is_refused_with_its_length(cli: Any, finished: Path) -> None:
    code, out, err = cli("predict", str(finished), f"context={CONTEXT}", f"question={'how many ' * 11_000}")
    assert (code, out) == (2, "")
    assert "question 1: its prompt has 99," in err
    assert "the model reads at most 2,048 (max_position_embeddings)" in err


def test_a_question_of_a_megabyte_is_refused_before_torch_is_needed(cli: Any, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "ask.jsonl"
    file.write_text("".join(json.dumps({"question": "é" * n, "context": ""}) + "\n" for n in (1, 500_001)))
    code, out, err = cli("predict", str(finished), f"input={file}")
    assert (code, out) == (2, "")
    assert "question 2: its question has 1,000,002 bytes, but the run reads at most 1,000,000" in err
    assert "loading" not in err
