"""The tables and sentences of a sweep's report, shared by the terminal, Markdown and HTML."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from ftlab import declared
from ftlab.redact import redact
from ftlab.run_dir import SPLITS
from ftlab.sweep.entry import MARKS, Entry, costs, front, ranked, text
from ftlab.sweep.figures import Sweep
from ftlab.sweep.statistics import RungCheck, SavedSteps, against, rung_checks
from ftlab.terminal import percent, span

LEADERBOARD = "Leaderboard"
LOSS = "validation loss"
VERDICT = "predicts the final ranking?"
DECIMALS = {"GiB": 2, "s": 1}  # of values that are shown with their unit
INTERVAL = "95 % interval"
DROPPED_FIRST = ("seconds", "rungs", "state", INTERVAL)  # columns that a narrow terminal leaves out, in this order

RUNGS = "rungs: the number of evaluations during training, and in parentheses the {unit} of the last one."


@dataclass(frozen=True)
class Table:
    """A table: a title, column heads, rows of cells, and notes that are printed below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    links: Mapping[str, str] = field(default_factory=dict)  # for the column "trial": cell to relative path

    def fitting(self, width: int, most: int | None = None) -> "Table":
        """This table in at most `width` characters and `most` rows. Columns are left out until it fits: first those of
        `DROPPED_FIRST`, then the last parameters."""
        rows = self.rows[:most]
        keep = list(self.head)
        sizes = {head: max([len(head), *(len(row[i]) for row in rows)]) for i, head in enumerate(self.head)}
        droppable = [*(name for name in DROPPED_FIRST if name in keep), *reversed(keep[3:])]
        for name in droppable:
            if sum(sizes[head] + 2 for head in keep) > width and name in keep:
                keep.remove(name)
        at = [self.head.index(head) for head in keep]
        missing = ", ".join(head for head in self.head if head not in keep)
        left_out = [f"columns left out to fit the terminal: {missing} (see report.md)"]
        notes = [*(left_out if len(keep) < len(self.head) else []), *self.notes]
        return Table(self.title, keep, [[row[i] for i in at] for row in rows], notes)


def number(value: float, metric: str) -> str:
    """The value of a metric as text, with its unit."""
    unit = declared.of(metric).unit
    if unit == "rate":
        return percent(value)
    return f"{value:.{DECIMALS.get(unit, 4)}f}" + (f" {unit}" if unit in DECIMALS else "")


def interval(entry: Entry, metric: str) -> str:
    """The 95 % interval of a trial's first objective as text; empty where none is known."""
    if entry.interval is None:
        return ""
    return (
        span(entry.interval) if declared.of(metric).is_rate else " to ".join(f"{bound:.4f}" for bound in entry.interval)
    )


def counts(entries: Sequence[Entry], wanted: int | None) -> str:
    """`19 of 24 trials finished: 11 complete, 8 pruned; 1 failed, 2 running`, and how many of them are duplicates."""
    by_state = {state: sum(e.state == state for e in entries) for state in ("complete", "pruned", "failed", "running")}
    finished = by_state["complete"] + by_state["pruned"]
    words = f"{finished} of {wanted} trials finished" if wanted else f"{finished} trials finished"
    rest = [f"{by_state[state]} {state}" for state in ("failed", "running") if by_state[state]]
    parts = f"{by_state['complete']} complete, {by_state['pruned']} pruned"
    copies = sum(e.state in ("complete", "pruned") and not e.distinct for e in entries)
    runs = f"{finished - copies} were run, {copies} copied the result of a trial with equal parameters"
    return f"{words}: {parts}" + (f"; {', '.join(rest)}" if rest else "") + (f"; {runs}" if copies else "")


def leaderboard(sweep: Sweep, links: Mapping[str, str] | None = None) -> Table:
    """Every trial, best first; with several objectives the Pareto front comes first. Duplicates have no rank."""
    entries = _ordered(sweep)
    objectives, several = sweep.objectives, len(sweep.objectives) > 1
    keys = [parameter.key for parameter in sweep.varied()]
    with_intervals = any(entry.interval for entry in entries)
    with_losses = _loss_orders(entries, sweep.directions)
    head = ["rank", "trial", objectives[0], *([INTERVAL] if with_intervals else []), *objectives[1:]]
    head += [LOSS] if with_losses else []
    head += ["on Pareto front" if several else "vs best", *_short(keys), "rungs", "state", "seconds"]
    members = {entry.number for entry in front(entries, sweep.directions)} if several else set()
    rows, used = [], set()
    places = count(1)
    for entry in entries:
        values = [number(*pair) for pair in zip(entry.values, objectives, strict=False)]
        values += ["-"] * (len(objectives) - len(values))
        standing, by = (
            _standing(entry, (sweep.done or [entry])[0], members if several else None) if entry.scored else ("", "")
        )
        used.add(by)
        rows.append(
            [str(next(places)) if entry.scored and entry.distinct else "-", str(entry.number), values[0]]
            + ([interval(entry, objectives[0])] if with_intervals else [])
            + values[1:]
            + ([("-" if entry.loss is None else f"{entry.loss:.4f}")] if with_losses else [])
            + [standing, *(text(entry.params[key]) if key in entry.params else "-" for key in keys)]
            + [_rungs(entry), _state(entry), "-" if entry.seconds is None else f"{entry.seconds:,.1f}"]
        )
    notes = [RUNGS.format(unit=sweep.rung_unit), *_constant(sweep), *_how(used, sweep)]
    return Table(LEADERBOARD, head, rows, notes, links or {})


SEARCHED = ("data", "model", "experiment")  # groups and nodes that decide what trials are trained and scored on
PARTS = {"template": "the prompt template", "tokenizer": "the tokenizer", **{name: f"{name} data" for name in SPLITS}}


def mixed(entries: Sequence[Entry]) -> Iterator[str]:
    """One warning for each input (rows of a split, template, tokenizer) that differs between trials that should share
    it, since their values are not comparable."""
    for part in ("data", *SPLITS, "template", "tokenizer"):
        for alike in _by(lambda entry: str(_searched(entry)), entries):
            having = [entry for entry in alike if part in entry.sources]
            groups = _by(lambda entry, part=part: str(entry.sources[part]["sha256"]), having)  # type: ignore[misc]
            if len(groups) > 1 and not (part == "data" and all("train" in entry.sources for entry in having)):
                listed = "; ".join(f"trials {', '.join(str(entry.number) for entry in group)}" for group in groups)
                what = PARTS.get(part, part)
                yield f"WARNING: {what} differs between trials, so their values are not comparable: {listed}"


def _searched(entry: Entry) -> list[tuple[str, str]]:
    return [(key, text(value)) for key, value in sorted(entry.params.items()) if key.partition(".")[0] in SEARCHED]


def _by(key: Callable[[Entry], str], entries: Sequence[Entry]) -> list[list[Entry]]:
    """Groups of trials with the same key, in the order of their first members."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return list(groups.values())


def _loss_orders(entries: Sequence[Entry], directions: Sequence[str]) -> bool:
    """Whether trials of equal values are ordered by their validation loss."""
    known = [entry for entry in entries if entry.scored and entry.distinct and entry.loss is not None]
    return len({costs(entry, directions) for entry in known}) < len(known)


def _ordered(sweep: Sweep) -> list[Entry]:
    rest = [entry for entry in sweep.entries if not entry.scored]
    rest.sort(key=lambda entry: (MARKS.index(entry.state), entry.number))
    entries = [*ranked(sweep.entries, sweep.directions), *rest]
    if len(sweep.objectives) == 1:
        return entries
    members = front(entries, sweep.directions)
    return members + [entry for entry in entries if entry not in members]


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each key where it is unique, else the whole key."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]


def _standing(entry: Entry, best: Entry, members: set[int] | None) -> tuple[str, str]:
    """The cell that compares a trial with the best, and the method behind it (a key of the notes of `_how`)."""
    if not entry.distinct:
        return f"same as {entry.same_as}", ""
    if members is not None:
        return ("yes" if entry.number in members else ""), ""
    if entry is best:
        return "best", ""
    found = against(best, entry)
    if found is None:
        return ("equal" if entry.values == best.values else "?"), ("" if entry.values == best.values else "unknown")
    return ("tie" if found.tie else "worse"), found.by


def _rungs(entry: Entry) -> str:
    return f"{len(entry.rungs)} ({max(entry.rungs)})" if entry.rungs else "0"


def _state(entry: Entry) -> str:
    return f"{entry.state} ({entry.note})" if entry.note else entry.state


def _constant(sweep: Sweep) -> list[str]:
    """A note on the parameters that have no column, because all trials share their value."""
    varied = {parameter.key for parameter in sweep.varied()}
    same = {key: text(value) for entry in sweep.entries for key, value in entry.params.items() if key not in varied}
    return [f"the same in all trials: {', '.join(f'{key}={value}' for key, value in same.items())}"] if same else []


def _how(used: set[str], sweep: Sweep) -> list[str]:
    """One note for each method by which trials were compared with the best."""
    sentences = {
        "rows": "tie or worse (paired test): both trials were scored on the same validation rows. It is a tie if the "
        "95 % interval of the difference (cluster bootstrap) contains 0 or, for answers that are either right or "
        "wrong, if McNemar's test gives p >= 0.05.",
        "intervals": "tie or worse (unpaired comparison): it is a tie if the 95 % interval of the difference from the "
        "best, computed from the intervals of both trials (MOVER; for rates Newcombe's method), contains 0. With one "
        "seed per trial it does not include the variation between seeds. The best of many trials also tends to look "
        "better than it is.",
        "unknown": f"?: a difference from the best cannot be tested, because no interval of {sweep.objectives[0]} is "
        "recorded. Several seeds per trial give one (sweep.seeds=3).",
    }
    return [sentence for key, sentence in sentences.items() if key in used]


def rungs(sweep: Sweep) -> Table | None:
    """How well each rung predicts the final ranking; None without rungs or with several objectives."""
    if len(sweep.objectives) > 1:
        return None
    checks = rung_checks(sweep.entries, sweep.rung_up, sweep.directions[0])
    if not checks:
        return None
    rows = [[str(check.step), *_rho(check), str(check.trials), check.words] for check in checks]
    notes = [
        f"Spearman's rank correlation of {sweep.rung_metric} at the rung with the final {sweep.objectives[0]}, over "
        "complete trials without duplicates; +1 means the same ranking. Pruned trials have no final value and are left "
        "out, which makes the correlation look weaker."
    ]
    head = [f"rung ({sweep.rung_unit})", "rank correlation", INTERVAL, "trials", VERDICT]
    return Table("Can pruning be trusted?", head, rows, notes)


def _rho(check: RungCheck) -> list[str]:
    if check.rho is None:
        return ["-", "-"]
    between = f"{check.low:+.2f} to {check.high:+.2f}" if check.trials > 3 else "-"
    return [f"{check.rho:+.2f}", between]


def importance(shares: dict[str, float]) -> Table | None:
    """Parameter importance; None where it is unknown."""
    if not shares:
        return None
    rows = [[key, f"{100 * share:.0f} %"] for key, share in shares.items()]
    note = (
        "Each parameter's share in what sets the best trials apart (PED-ANOVA, no duplicates). With few trials: a hint."
    )
    return Table("Parameter importance", ["parameter", "importance"], rows, [note])


def failures(entries: Sequence[Entry]) -> Table | None:
    """Why trials failed or were not run, the most frequent cause first; None where all went well."""
    by_cause: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.state == "failed" or entry.cause:
            by_cause.setdefault(redact(entry.cause) or "no cause recorded", []).append(entry)
    if not by_cause:
        return None
    rows = []
    for cause, found in sorted(by_cause.items(), key=lambda item: (-len(item[1]), item[1][0].number)):
        peak = max((entry.peak_gib for entry in found if entry.peak_gib is not None), default=None)
        numbers = ", ".join(str(entry.number) for entry in found)
        rows.append([numbers, str(len(found)), "-" if peak is None else f"{peak:.1f} GiB", cause])
    return Table("Trials that failed or were not run", ["trials", "count", "peak GPU memory", "cause"], rows)


def pruning(found: SavedSteps) -> str:
    """A sentence on what pruning saved; empty where it saved nothing."""
    if found.planned <= found.done:
        return ""
    return (
        f"pruning saved {found.planned - found.done:,} of {found.planned:,} optimizer steps "
        f"({100 * found.share:.0f} %): the finished trials took {found.done:,}"
    )
