"""Questions with short answers from a seeded generator: look-ups in a small table, and small arithmetic.

A *subject* (mountains, shops, ...) has its own columns and belongs to one split, and so does each pair of numbers that
is added or subtracted: the subjects and pairs of validation and test never occur in training. Names and values are
drawn anew for each row, so that they must be read in the table and cannot be memorised.

Source: written for this project; no other data set is copied. Needs the standard library only.
"""

from collections.abc import Iterator
from hashlib import sha256
from random import Random

from ftlab.config import DataConfig
from ftlab.data.splits import Example, SourceSplits

ROWS = 2000  # training rows that are generated unless data.train_rows is set
SUMS = 0.2  # the share of rows that are arithmetic
WHICH = 0.25  # the share of look-ups that ask which row has a value
LARGEST = 9  # the largest number that is added or subtracted
# Things and their columns; the last column of each holds numbers.
SUBJECTS = {
    "train": """
mountain range climbers; river mouth bridges; shop owner staff; singer label songs; doctor ward patients
ship port crew; school district pupils; book publisher pages; train route seats; farm valley cows; museum keeper rooms
team stadium goals; planet star moons; hotel manager beds; teacher subject years; pilot airline flights
baker oven loaves; lake island boats; film studio awards; dog trainer weight; garden gardener trees
castle tower walls; bank branch loans; actor theatre plays; engine maker power; plant soil seeds
writer language prizes; road end lanes
""",
    "validation": "bird forest eggs; painter gallery pictures; market square stalls",
    "test": "bridge builder arches; horse stable races; architect city floors; café corner tables",
}
NAMES = """
Adam Alan Amy Anna Ben Bill Bob Carl Chris Clara Dan David Emma Eric Eva Frank Fred Grace Hans Helen Henry Ian Jack
James Jane Jean Jim John Karl Kate Laura Lee Leo Lily Lisa Luke Mark Martin Mary Max Mike Nick Nina Olga Oscar Paul
Peter Rosa Ruth Sam Sara Simon Steve Susan Thomas Tim Tom Victor
"""
WORDS = """
red blue green white black north south east west rock jazz gold iron wood stone glass paper silver summer winter
spring morning night Paris London Berlin Rome Madrid Boston Dallas Chicago Texas Spain France Germany Italy Canada
Japan China India Brazil Mexico Sweden Norway
"""


def load(cfg: DataConfig) -> SourceSplits:
    """Generate the three splits, of `data.train_rows`, `data.validation` and `data.test_rows` rows."""
    train = cfg.train_rows or ROWS
    sizes = {"train": train, "validation": _share(cfg.validation, train)}
    sizes["test"] = cfg.test_rows or _share(cfg.test_size, train)
    made = {split: generate(split, rows, cfg.split_seed) for split, rows in sizes.items()}
    notes = [
        f"{name}: {len(rows):,} generated rows, on subjects and sums of no other split" for name, rows in made.items()
    ]
    return SourceSplits(**made, notes=notes, grouped_by="subject")


def generate(split: str, count: int, seed: int = 0) -> list[Example]:
    """Return `count` different rows of a split (train, validation, test). The same arguments give the same rows, and a
    larger `count` only appends rows."""
    rng = Random(f"{split}/{seed}")
    found: dict[tuple[str, str], Example] = {}
    sums = _sums(split, rng)
    while len(found) < count:
        row = next(sums, None) if rng.random() < SUMS else _look_up(split, rng)
        if row and (row.question, row.context) not in found:
            question, context, answer, group = row.question, row.context, row.answer, row.group
            found[question, context] = Example(f"{split}-{len(found):05d}", question, context, answer, group)
    return list(found.values())


def subjects(split: str) -> list[list[str]]:
    """Return the things that a split asks about, each with its columns; the last column holds numbers."""
    return [line.split() for line in SUBJECTS[split].replace("\n", ";").split(";") if line.strip()]


def _look_up(split: str, rng: Random) -> Example:
    """Return a table of two or three rows with a question that asks for a cell, or for the row that has a value."""
    thing, *columns = rng.choice(subjects(split))
    names = rng.sample(NAMES.split(), rng.randint(2, 3))
    column = rng.choice(columns)
    values = WORDS.split() if column != columns[-1] else [str(number) for number in range(2, 100)]
    cells = rng.sample(values, len(names))
    i = rng.randrange(len(names))
    table = "\n".join(f"{column} of {name}: {cell}" for name, cell in zip(names, cells, strict=True))
    if rng.random() < WHICH:
        return Example("", f"Which {thing} has the {column} {cells[i]}?", table, names[i], thing)
    asked = rng.choice(("What is the {1} of {0}?", "Tell me the {1} of {0}."))
    return Example("", asked.format(names[i], column), table, cells[i], thing)


def _sums(split: str, rng: Random) -> Iterator[Example]:
    """Yield every sum and difference of this split once, in random order."""
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(a + 1) if _split_of(a, b) == split]
    rows = [row for a, b in pairs for row in _worded(a, b)]
    rng.shuffle(rows)
    yield from rows


def _worded(a: int, b: int) -> Iterator[Example]:
    group = f"{a} and {b}"
    for question, answer in (
        (f"What is {a} + {b}?", a + b),
        (f"What is {b} + {a}?", a + b),
        (f"What is {a} plus {b}?", a + b),
        (f"What is {b} plus {a}?", a + b),
        (f"What is {a} - {b}?", a - b),
        (f"What is {a} minus {b}?", a - b),
    ):
        yield Example("", question, "", str(answer), group)


def _split_of(a: int, b: int) -> str:
    place = sha256(f"{a}/{b}".encode()).digest()[0] % 10
    return "validation" if place == 0 else "test" if place == 1 else "train"


def _share(size: float, of: int) -> int:
    return round(size) if size >= 1 else max(1, round(size * of))
