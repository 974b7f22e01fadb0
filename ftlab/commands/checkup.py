"""Checks whether the folder of a run or study is intact, and from where it can be resumed. Changes nothing in it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ftlab.commands.finding import Line
from ftlab.errors import FtlabError, InputError, first_line
from ftlab.run_dir import RunDir, count_damaged_lines, find_run
from ftlab.sweep import storage
from ftlab.sweep.study import CARD, Study, folder_of
from ftlab.train.checkpoint import first_damage, steps_in

ASIDE = "when the run resumes, it is renamed and replaced"


def checkup(text: str) -> Iterator[Line]:
    """Yield the findings on a run or a study, named by its folder or its name in outputs/.

    Raises:
        InputError: it is neither.
    """
    for folder in (Path(text).expanduser(), Path("outputs") / text):
        if (folder / CARD).is_file() or (folder / "study.db").is_file():
            yield from of_study(folder)
            return
        if steps_in(folder / "checkpoints") or RunDir(folder).summary.status:
            yield from of_run(RunDir(folder))
            return
    yield from of_run(find_run(text))


# --- runs -----------------------------------------------------------------------------------------------------


def of_run(run: RunDir) -> Iterator[Line]:
    """Check the records, checkpoints and result of a run; the last finding is its state."""
    damage = run.damage()
    for name, reason in damage.items():
        yield Line("fail", name, f"damaged ({reason})", ASIDE)
    lost = count_damaged_lines(run / "metrics.jsonl")
    if lost:
        yield Line("fail", "metrics.jsonl", f"{lost} damaged lines", ASIDE)
    whole: list[int] = []
    for step in sorted(steps_in(run / "checkpoints")):
        path = run / f"checkpoints/step-{step:06d}"
        torn = first_damage(path)
        if torn is None:
            whole.append(step)
        yield Line("fail", path.name, torn, "an older one is used") if torn else Line("ok", path.name, "intact")
    broken = list(_results(run))
    yield from broken
    yield _standing(run, whole, bool([line for line in broken if line.mark == "fail"]))


def _results(run: RunDir) -> Iterator[Line]:
    """Check the weights in adapter/ or model/."""
    from safetensors import SafetensorError, safe_open

    for folder in (run / "adapter", run / "model"):
        for file in sorted(folder.glob("*.safetensors")):
            name = f"{folder.name}/{file.name}"
            try:
                with safe_open(file, framework="pt") as tensors:
                    yield Line("ok", folder.name, f"{len(tensors.keys())} tensors in {name}")
            except (OSError, SafetensorError) as error:
                remedy = f"rename {folder}/ and run the same command again: it is saved again from the last checkpoint"
                yield Line("fail", folder.name, f"{name} is damaged ({first_line(error)})", remedy)


def _standing(run: RunDir, whole: list[int], broken: bool) -> Line:
    """Describe what the command of this run would do next."""
    finished = run.done(None)
    planned = run.summary.planned_steps
    if finished and not broken:
        return Line("ok", "run", f"finished after {finished.step} steps: there is nothing to resume")
    if whole:
        return Line(
            "ok", "run", f"the same command resumes from step {whole[-1]}" + (f" of {planned}" if planned else "")
        )
    return Line("warn", "run", "no intact checkpoint: the same command starts at step 0")


# --- studies --------------------------------------------------------------------------------------------------


def of_study(folder: Path) -> Iterator[Line]:
    """Check the database of a study, and list its trials that are damaged or have not ended."""
    file = folder / "study.db"
    reason = storage.damage(file) if file.is_file() else None
    if reason:
        remedy = "the same command renames it, and rebuilds it from the folders of its trials"
        yield Line("fail", "study.db", f"damaged ({reason})", remedy)
        numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        for number in numbers:
            yield from _of_trial(folder / str(number), number)
        return
    try:
        study = Study.load(str(folder))
    except InputError as error:
        yield Line("fail", "study", str(error))
        return
    with closing(study):
        counts = study.counts()
        yield Line("ok", "study.db", f"intact, {len(study.trials())} trials")
        for trial in study.trials():
            if (place := folder_of(study, trial)).is_dir() and place.name == str(trial.number):
                yield from _of_trial(place, trial.number)
        left = study.left()
        state = (
            f"{counts.finished} finished, {counts.failed} failed, {counts.running} running, {counts.waiting} waiting"
        )
        yield Line(
            "ok", "study", f"{state}; " + (f"the same command runs {left} more" if left else "nothing is left to run")
        )


def _of_trial(folder: Path, number: int) -> Iterator[Line]:
    """Yield what is damaged in a trial's runs, and the state of those that have not ended."""
    runs = [RunDir(path) for path in sorted(folder.glob("seed-*")) or [folder]]
    for run in runs:
        try:
            lines = list(of_run(run))
        except FtlabError as error:
            lines = [Line("fail", "run", str(error))]
        ended = run.done(None) or run.summary.status == "pruned"
        shown = [line for line in lines if line.mark == "fail" or (line is lines[-1] and not ended)]
        for line in shown:
            name = f"trial {number}"
            yield Line(line.mark, name, f"{line.name}: {line.text}" if line.name != "run" else line.text, line.remedy)
