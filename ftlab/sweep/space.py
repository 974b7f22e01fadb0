"""The search space of a sweep, read from Hydra's sweep syntax; values are turned back into overrides.

    lora.r=8,16,32  choice(a,b)     one of these; lists and dicts are stored as text in the study
    range(start, stop, step)        numbers, `stop` excluded, as in Hydra
    interval(a, b)                  a <= value < b; integers for `int(interval(a, b))` and for keys of integer type
    tag(log, ...)                   on a logarithmic scale; a tagged choice or range is searched, never enumerated
    shuffle(...)                    a random order of the grid, the same one every time
    sort(...), glob(...)            as in Hydra; glob expands to options of a group

Imports Optuna only when a distribution is needed.
"""

import json
import math
import random
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftlab.composition import TRUST, UNTYPED, check_overrides, hydra_session
from ftlab.config import OPTIONS, known_keys
from ftlab.errors import ConfigError, InputError
from ftlab.shell import quoted

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ParamValue = str | int | float | bool | None  # what Optuna stores as a parameter
ParamKind = Literal["choice", "int", "float"]
GridOrder = Literal["up", "down", "shuffled"]
KINDS, ORDERS = get_args(ParamKind), get_args(GridOrder)

# The sweep sets these keys for every trial.
RESERVED = ("run_dir", "run_name", "force", "objective", "sweep")


EMPTY_LIST = "A,B"
EMPTY = {"interval": "LOW,HIGH", "range": "START,STOP", "tag": "log,interval(LOW,HIGH)", "glob": "*"}
_FUNCTION = re.compile(r"(?P<key>[^=]+)=\s*(?P<name>\w+)\((?P<inside>.*)\)\s*", re.DOTALL)
_EVALUATING = re.compile(r"\w+ while evaluating '(?P<what>.*?)': (?P<why>.*)", re.DOTALL)


class Suggests(Protocol):
    """An Optuna trial, live or fixed."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Dimension:
    """One searched key and its values: `choices`, or numbers from `low` to `high`, both included."""

    key: str
    kind: ParamKind
    choices: tuple[ParamValue, ...] = ()
    texts: tuple[str, ...] = ()  # the choices in Hydra's syntax
    low: float = 0
    high: float = 0
    step: float | None = None  # None: continuous
    log: bool = False
    order: GridOrder = "up"

    def grid(self) -> list[ParamValue] | None:
        """Every value in the order written; None for a continuous dimension."""
        if self.kind == "choice":
            values: list[ParamValue] = list(self.choices)
        elif self.step is None:
            return None
        else:
            values = list(_steps(self.low, self.high, self.step))
        if self.order == "shuffled":
            random.Random(self.key).shuffle(values)
        return values[::-1] if self.order == "down" else values

    def probes(self) -> list[ParamValue]:
        """The values to check before a sweep: all that are listed, and both ends of an interval."""
        if self.kind == "choice":
            return self.grid() or []
        ends: list[ParamValue] = [self.low, self.high]
        if self.kind == "float" and self.step is None:
            ends = [self.low, math.nextafter(self.high, self.low)]  # an interval excludes its end
        return ends[::-1] if self.order == "down" else ends

    def override(self, value: Any) -> str:
        """`key=value` in Hydra's syntax, such that Hydra parses exactly this value."""
        known = [text for choice, text in zip(self.choices, self.texts, strict=True) if _same(choice, value)]
        return f"{self.key}={known[0] if known else text_of(value)}"

    def value(self, raw: Any) -> ParamValue:
        """A plain value (a list, where the choices are lists) as the study stores it.

        Raises:
            ConfigError: the dimension has no such value.
        """
        if self.kind == "choice":
            found = [c for c, t in zip(self.choices, self.texts, strict=True) if _same(c, raw) or t == text_of(raw)]
        else:
            number = isinstance(raw, int | float) and not isinstance(raw, bool)
            found = [self.snapped(raw)] if number and self._holds(raw) else []
        if found:
            return found[0]
        raise ConfigError(f"{self.key}={text_of(raw)} is not in the space of the sweep, {self.describe()}")

    def snapped(self, value: ParamValue) -> ParamValue:
        """The value without rounding error, at the nearest step: 0.30000000000000004 becomes 0.3."""
        if self.kind != "float" or self.step is None or not isinstance(value, int | float):
            return value
        return float(_exact(self.low) + round((value - self.low) / self.step) * _exact(self.step))

    def distribution(self) -> "BaseDistribution":
        """The Optuna distribution of this key."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution(self.choices)
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: Suggests) -> ParamValue:
        """The trial's value, drawn or fixed beforehand."""
        if self.kind == "choice":
            drawn: ParamValue = trial.suggest_categorical(self.key, self.choices)
        elif self.kind == "int":
            drawn = trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            drawn = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return self.snapped(drawn)

    def describe(self) -> str:
        """The dimension as text for messages."""
        if self.kind == "choice":
            body = f"choice({','.join(self.texts)})"
            return f"tag(log,{body})" if self.log else body
        if self.step is not None:
            body = f"{text_of(self.low)} to {text_of(self.high)} in steps of {text_of(self.step)}"
        else:
            body = f"{text_of(self.low)} to {text_of(self.high)}, {'whole' if self.kind == 'int' else 'real'} numbers"
        return body + (" on a log scale" if self.log else "")

    def _holds(self, number: float) -> bool:
        if not self.low <= number <= self.high:
            return False
        if self.kind == "int":
            return number == int(number) and (int(number) - int(self.low)) % int(self.step or 1) == 0
        return self.step is None or math.isclose(float(self.snapped(number) or 0), number, rel_tol=1e-9)


@dataclass(frozen=True)
class Space:
    """The dimensions of a sweep, in the order written."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def read(cls, overrides: Sequence[str], params: Mapping[str, Any]) -> tuple["Space", list[str]]:
        """The space, and the overrides with a single value. `params` are those of the sweep file; the command line
        overrides them key by key.

        Raises:
            ConfigError: lists all unknown keys and invalid spaces, each with its remedy.
        """
        _check_once(overrides)
        written = {**_by_key(map(_from_file, params.items())), **_by_key(overrides)}
        if any(str(key).strip(" +") == TRUST for key in params) and TRUST not in _by_key(overrides):
            raise ConfigError(UNTYPED)
        check_syntax(list(written.values()))
        with _session():
            check_overrides([text for text in written.values() if not _is_glob(text)], multirun=True)
            found = _each(_dimension_or_fixed, list(written.values()))
        return cls(tuple(d for d in found if isinstance(d, Dimension))), [t for t in found if isinstance(t, str)]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Space":
        """The counterpart of `record`.

        Raises:
            InputError: a newer ftlab recorded it, with features that this version does not know.
        """
        return cls(tuple(_recorded(key, node) for key, node in record.items()))

    def record(self) -> dict[str, Any]:
        """The space as JSON."""
        nodes: dict[str, Any] = {d.key: {k: v for k, v in asdict(d).items() if k != "key"} for d in self.dimensions}
        found: dict[str, Any] = json.loads(json.dumps(nodes))
        return found

    @staticmethod
    def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """One line for every key whose values differ between two records; their order does not matter."""
        before = {d.key: d for d in Space.from_record(old).dimensions}
        now = {d.key: d for d in Space.from_record(new).dimensions}
        return [
            f"{key}: {_described(before.get(key))} in the study, {_described(now.get(key))} now"
            for key in sorted({*before, *now})
            if _unordered(before.get(key)) != _unordered(now.get(key))
        ]

    @property
    def keys(self) -> list[str]:
        """The searched keys."""
        return [dimension.key for dimension in self.dimensions]

    def size(self) -> int | None:
        """The number of grid points; None if a dimension is continuous."""
        grids = [dimension.grid() for dimension in self.dimensions]
        return None if any(grid is None for grid in grids) else math.prod(len(grid or []) for grid in grids)

    @property
    def enumerable(self) -> bool:
        """Whether all values are listed and none has a tag."""
        return self.size() is not None and not any(dimension.log for dimension in self.dimensions)

    def at(self, index: int) -> dict[str, ParamValue]:
        """The grid point of an index; the last key varies fastest."""
        point: dict[str, ParamValue] = {}
        for dimension in reversed(self.dimensions):
            grid = dimension.grid() or []
            index, place = divmod(index, len(grid))
            point[dimension.key] = grid[place]
        return {dimension.key: point[dimension.key] for dimension in self.dimensions}

    def index(self, params: Mapping[str, Any]) -> int | None:
        """The inverse of `at`; None if parameters are missing or not on the grid."""
        index = 0
        for dimension in self.dimensions:
            grid = dimension.grid() or []
            value = dimension.snapped(params.get(dimension.key))
            place = next((i for i, point in enumerate(grid) if _same(point, value)), None)
            if place is None or dimension.key not in params:
                return None
            index = index * len(grid) + place
        return index

    def first(self) -> dict[str, ParamValue]:
        """The first value of every key: the one written first, or the lowest."""
        return {dimension.key: dimension.probes()[0] for dimension in self.dimensions}

    def suggest(self, trial: Suggests) -> dict[str, ParamValue]:
        """A value for every key, drawn by the trial."""
        return {dimension.key: dimension.suggest(trial) for dimension in self.dimensions}

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """The Optuna distributions by key."""
        return {dimension.key: dimension.distribution() for dimension in self.dimensions}

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides that set these parameters."""
        return [dimension.override(params[dimension.key]) for dimension in self.dimensions]

    def values(self, guess: Mapping[str, Any]) -> dict[str, ParamValue]:
        """Values of some or all keys, such as an entry of `sweep.first`, as the study stores them.

        Raises:
            ConfigError: a key that is not searched, or a value outside its dimension.
        """
        known = {dimension.key: dimension for dimension in self.dimensions}
        unknown = [key for key in guess if key not in known]
        if unknown:
            raise ConfigError(
                f"sweep.first names {', '.join(unknown)}, which the sweep does not search: it searches "
                f"{', '.join(known) or 'nothing'}"
            )
        return {key: known[key].value(raw) for key, raw in guess.items()}

    def params_of(self, overrides: Sequence[str]) -> dict[str, ParamValue]:
        """The parameters that a trial with these overrides has: the inverse of `overrides`.

        Raises:
            ConfigError: a value is missing, or outside its dimension.
        """
        given = _by_key(text.lstrip("+") for text in overrides)
        lost = [key for key in self.keys if key not in given]
        if lost:
            raise ConfigError(f"no value of {', '.join(lost)}")
        with _session():
            return self.values({key: _plain(_parsed(given[key]).value()) for key in self.keys})


# --- values as Hydra writes them -------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """A plain value in Hydra's syntax: floats with all digits, strings quoted where Hydra would misread them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text_of(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    return value if _reads_back(value) else quoted(value)


def _reads_back(text: str) -> bool:
    if not text or text != text.strip() or "\\" in text:
        return False
    try:
        override = OverridesParser.create().parse_override(f"x={text}")
    except HydraException:
        return False
    return isinstance(override._value, str) and override._value == text


def _same(one: Any, other: Any) -> bool:
    """Equal, and both or neither a bool: 1 is not true."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _exact(number: float) -> Decimal:
    return Decimal(repr(number))


def _steps(low: float, high: float, step: float) -> Iterator[int | float]:
    kind: Callable[[Any], Any] = int if isinstance(low, int) and isinstance(step, int) else float
    count = int((_exact(high) - _exact(low)) / _exact(step))
    return (kind(_exact(low) + place * _exact(step)) for place in range(count + 1))


def _recorded(key: str, node: Mapping[str, Any]) -> Dimension:
    known = {field.name for field in fields(Dimension)}
    foreign = sorted(node.keys() - known)
    if foreign or node["kind"] not in KINDS or node["order"] not in ORDERS:
        what = f"{key} has {', '.join(foreign)}" if foreign else f"{key} is a {node['order']} {node['kind']}"
        raise InputError(
            f"a newer ftlab made the study: this version cannot read its space ({what}). Upgrade: pip install -U ftlab"
        )
    return Dimension(key, **{**node, "choices": tuple(node["choices"]), "texts": tuple(node["texts"])})


def _described(dimension: Dimension | None) -> str:
    return "not searched" if dimension is None else dimension.describe()


def _unordered(dimension: Dimension | None) -> Any:
    if dimension is None:
        return None
    node = {key: value for key, value in asdict(dimension).items() if key not in ("order", "choices")}
    return {**node, "texts": sorted(dimension.texts)}


# --- reading ---------------------------------------------------------------------------------------------


@contextmanager
def _session() -> Iterator[None]:
    """Use the running Hydra session, which knows `--config-dir`, or start one."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with hydra_session():
        yield


def _each(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    """`function` of each text. All problems are raised as one error."""
    found: list[Any] = []
    problems: list[str] = []
    for text in texts:
        try:
            found.append(function(text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return found


def _check_once(overrides: Sequence[str]) -> None:
    """Refuse a searched key that the same command line sets again: as in Hydra the last one would win, and the search
    would silently become a single value or another search."""
    given: dict[str, list[str]] = {}
    for text in overrides:
        given.setdefault(text.partition("=")[0].lstrip("+"), []).append(text)
    twice = [texts for texts in given.values() if len(texts) > 1 and any(map(is_swept, texts[:-1]))]
    if twice:
        raise ConfigError(*(f"{' and '.join(texts)}: the key is given {len(texts)} times: keep one" for texts in twice))


def _by_key(texts: Any) -> dict[str, str]:
    """Overrides by key; of several for one key the last wins, as in Hydra."""
    return {text.partition("=")[0].lstrip("+"): text for text in texts}


def _from_file(item: tuple[str, Any]) -> str:
    """An entry of `hydra.sweeper.params` as an override: a string is in sweep syntax, a list holds choices."""
    key, value = item
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if isinstance(value, str):
        return f"{key}={value}"
    if isinstance(value, Mapping):
        inner = next(iter(value), "KEY")
        raise ConfigError(f"hydra.sweeper.params.{key} is a map: write its keys with dots, {key}.{inner}: ...")
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{key}=[] of hydra.sweeper.params has no value to try: list one or more")
        return f"{key}={','.join(map(text_of, value))}"  # choice(...) cannot contain null
    return f"{key}={text_of(value)}"


def _dimension_or_fixed(text: str) -> Dimension | str:
    override = _parsed(text)
    if not override.is_sweep_override():
        return text
    name = override.key_or_group
    key = name if name.startswith(OPTIONS) else override.get_key_element()  # composition adds options itself
    if name.partition(".")[0] in RESERVED or name.startswith("hydra"):
        raise ConfigError(f"{text}: a sweep cannot search {name}, which is the same for all its trials: give one value")
    value = override.value()
    tags = ("log", "int") if isinstance(value, IntervalSweep) else ("log",)
    unknown = sorted(getattr(value, "tags", set()) - {*tags})
    if unknown:
        raise ConfigError(f"{text}: the tag {', '.join(unknown)} is unknown here; known: {' and '.join(tags)}")
    if isinstance(value, IntervalSweep):
        return _interval(key, text, value)
    if isinstance(value, RangeSweep):
        return _range(key, text, value)
    return _choice(key, text, override)


def check_syntax(texts: Sequence[str]) -> None:
    """Refuse functions of the sweep syntax that Hydra cannot evaluate, and that quoting would not fix.

    Raises:
        ConfigError: lists every one with what is wrong inside it.
    """
    problems = [problem for text in texts if (problem := _syntax_problem(text))]
    if problems:
        raise ConfigError(*problems)


def _syntax_problem(text: str) -> str | None:
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, OmegaConfBaseException) as error:
        function = _FUNCTION.fullmatch(text)
        found = _EVALUATING.match(str(error))
        if not function or not found:
            return None  # a syntax error, which the check of overrides reports
        key, name, inside = function["key"], function["name"], function["inside"]
        if not inside.strip():
            return f"{text}: {name}() is empty: write {_typed(key, f'{name}({EMPTY.get(name, EMPTY_LIST)})')}"
        if name == "choice" and "NoneType" in found["why"]:
            return f"{text}: null cannot stand inside choice(...): write {_typed(key, inside)}"
        return f"{text}: {found['what']} cannot be evaluated ({' '.join(found['why'].split())})"
    return None


def _typed(key: str, value: str) -> str:
    """An override quoted for a shell."""
    return shlex.quote(f"{key}={value}")


def is_swept(text: str) -> bool:
    """Whether an override has several values to search."""
    try:
        return OverridesParser.create().parse_override(text).is_sweep_override()
    except (HydraException, OmegaConfBaseException):
        return False


def _is_glob(text: str) -> bool:
    """Whether the override is a glob(...) over options of a group, which the check of overrides cannot list."""
    return text.partition("=")[2].lstrip().startswith("glob(")


def _parsed(text: str) -> Override:
    hydra = GlobalHydra.instance().hydra
    try:
        return OverridesParser.create(hydra.config_loader if hydra else None).parse_overrides([text])[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{text}: {str(error).strip().splitlines()[0]}") from None


def _interval(key: str, text: str, value: IntervalSweep) -> Dimension:
    if value.start is None or value.end is None or not value.start < value.end:
        raise ConfigError(f"{text}: an interval must go from a lower to a higher number")
    if not math.isfinite(value.end - value.start):
        raise ConfigError(f"{text}: both ends of an interval must be finite")
    log = "log" in value.tags
    cast = "int" in value.tags or (isinstance(value.start, int) and isinstance(value.end, int))
    whole = cast or _whole_key(key)  # Hydra parses `interval(4,8)` as floats, whatever was written
    if whole and not cast and not (float(value.start).is_integer() and float(value.end).is_integer()):
        remedy = _typed(key, f"int({text.partition('=')[2]})")
        raise ConfigError(f"{text}: {key} must be a whole number: write {remedy}")
    _check_log(text, value.start, log)
    if not whole:
        return Dimension(key, "float", low=float(value.start), high=float(value.end), log=log)
    low, high = math.ceil(value.start), math.ceil(value.end) - 1  # Hydra's intervals exclude their end
    if low >= high:
        raise ConfigError(f"{text} contains {max(0, high - low + 1)} whole numbers (its end is excluded): widen it")
    return Dimension(key, "int", low=low, high=high, log=log)


def _whole_key(key: str) -> bool:
    """Whether the schema declares the key as an integer."""
    return known_keys().get(key.lstrip("+")) in (int, int | None)


def _range(key: str, text: str, value: RangeSweep) -> Dimension | str:
    start, stop, step = value.start, value.stop, value.step
    if start is None or stop is None or step == 0:
        raise ConfigError(f"{text}: a range needs a start, a stop and a step other than 0")
    span = (_exact(stop) - _exact(start)) / _exact(step)
    count = math.ceil(span)  # `stop` is excluded
    if count < 1:
        raise ConfigError(f"{text}: the range is empty (its stop is excluded): range(start, stop, step)")
    whole = all(isinstance(number, int) for number in (start, stop, step))
    numbers = [_exact(start) + place * _exact(step) for place in (0, count - 1)]
    low, high = (int(n) if whole else float(n) for n in sorted(numbers))
    if count == 1:
        return f"{key}={text_of(low)}"
    log = "log" in value.tags
    _check_log(text, low, log)
    if log and not (whole and abs(step) == 1):
        raise ConfigError(f"{text}: a log scale cannot have even steps: write tag(log, interval(a, b)), or choice(...)")
    order: GridOrder = "shuffled" if value.shuffle else "up" if step > 0 else "down"
    kind: Literal["int", "float"] = "int" if whole else "float"
    return Dimension(key, kind, low=low, high=high, step=abs(step), log=log, order=order)


def _choice(key: str, text: str, override: Override) -> Dimension | str:
    value: Any = override.value()
    parsed = list(override.sweep_iterator()) if isinstance(value, Glob) else list(value.list)
    if not parsed:
        raise ConfigError(f"{text} matches no option of {override.key_or_group}")
    plain = [_plain(item) for item in parsed]
    texts = [text_of(item) for item in plain]
    twice = sorted({name for place, name in enumerate(texts) if any(_same(plain[place], p) for p in plain[:place])})
    if twice:
        raise ConfigError(f"{text} lists {', '.join(twice)} twice: name each value once")
    if len(plain) == 1:
        return f"{key}={texts[0]}"
    log = "log" in getattr(value, "tags", set())
    for item in plain if log else []:
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise ConfigError(f"{text}: {text_of(item)} has no logarithm: remove tag(log, ...)")
        _check_log(text, item, log)
    stored = tuple(t if isinstance(p, list | dict) else p for p, t in zip(plain, texts, strict=True))
    order: GridOrder = "shuffled" if getattr(value, "shuffle", False) else "up"
    return Dimension(key, "choice", choices=stored, texts=tuple(texts), log=log, order=order)


def _plain(item: Any) -> Any:
    """A parsed value in plain Python types."""
    if isinstance(item, QuotedString):
        return item.text
    if isinstance(item, list):
        return [_plain(part) for part in item]
    if isinstance(item, dict):
        return {_plain(name): _plain(part) for name, part in item.items()}
    return item


def _check_log(text: str, low: float, log: bool) -> None:
    if log and low <= 0:
        raise ConfigError(f"{text}: a log scale must start above 0, not at {text_of(low)}")
