"""How the databases of a pair vary: one recipe per database, the most useful first."""

from dataclasses import dataclass

from ftlab.sql.values import Value

WORDS = ("ann", "Bob", "cy", "Dee", "eve", "10", "9", "Flo", "gus", "2", "hal", "Ida", "jo", "1", "kit", "lou")
NUMERALS = ("3", "10", "2", "25", "7", "1", "100", "4", "50", "8", "12", "6", "2.5", "30", "9", "0")
NUMBERS = (3, 11, 2, 25, 7, 1, 100, 4, 50.5, 8, 12, 6, 2.5, 30, 9, 17)
DATES = ("2008-06-15", "2010-01-02", "1999-12-31", "2008-07-01", 1, 0, "2020-02-29 10:30:00", "x", "2001-05-05", 5)
# Values of columns without tests, by kind ("numeral": texts that are used as numbers) and domain.
FREE: dict[str, dict[str, tuple[Value, ...]]] = {
    "number": {"unique": NUMBERS, "small": (1, 2, 3), "constant": (2,), "mirror": (-2, -1, 0, 1, 2, 0.5, -0.5)},
    "text": {"unique": WORDS, "small": ("a", "B", "2"), "constant": ("a",), "mirror": ("a", "A", "b", "", "10", "9")},
    "numeral": {
        "unique": NUMERALS,
        "small": ("1", "2", "3"),
        "constant": ("2.5",),
        "mirror": ("-1", "1", "0", "10", "9"),
    },
    "any": {"unique": DATES, "small": (0, 1, "a"), "constant": (1,), "mirror": (-1, 1, 0, "2008-06-15", "a", "A")},
}


@dataclass(frozen=True)
class Recipe:
    """How to vary a database.

    keys: `aligned` (group i of one table joins group i of another), `shifted` (group i joins group i + 1 of the next
    table), `twisted` (aligned by the first key of a row; its other keys belong to later groups), `mixed` (random),
    `one` (all equal).
    domain: the pool of columns without a test. nulls: the share of NULL among them. base, near, free: rows per table of
    each kind (see `databases`). sized: group sizes around HAVING's thresholds. null_group: the first group has NULL as
    its key and in all columns without a test. paired: every group has a partner of equal size that shares some of its
    key values. double: every row twice. empty: `all` tables or `one`. keys_used: how many keys are drawn from.
    crossed, lone: see `Maker.crossed_rows` and `Maker.lone_rows`.
    large: more rows than a large LIMIT; from 2 on each column has its own order, and from 3 on half of the columns
    repeat values. points: rows from the points of `Tryouts`: `telling`, `twins`, `unmet` (of one condition or all),
    `shares` (groups with a share of fulfilling rows), or `pool` (any tried values); with `sized` each point is repeated
    as often as HAVING counts, or twice. first: which of the points to use alone.
    """

    keys: str = "mixed"
    domain: str = "unique"
    nulls: float = 0.0
    base: int = 4
    near: int = 8
    free: int = 3
    sized: bool = False
    null_group: bool = False
    paired: bool = False
    double: bool = False
    empty: str = ""
    keys_used: int = 4
    crossed: int = 0
    lone: int = 0
    large: int = 0
    points: str = ""
    first: int = 0


RECIPES = (
    Recipe("aligned", near=12, sized=True),
    Recipe("mixed", "small", 0.15, base=6, near=8, free=4),
    Recipe("one", base=1, near=0, free=0),
    Recipe("mixed", empty="all"),
    Recipe("aligned", "mirror", 0.1, base=3, near=10, free=4, sized=True),
    Recipe("mixed", "unique", base=2, near=12, free=6),
    Recipe("aligned", "small", base=5, near=4, free=2, sized=True, null_group=True),
    Recipe("mixed", "constant", base=4, near=8, free=2),
    Recipe("mixed", "mirror", 0.4, base=5, near=6, free=6),
    Recipe("mixed", "unique", base=0, near=10, free=0, keys_used=2),
    Recipe("mixed", "small", base=3, near=4, free=3, double=True),
    Recipe("one", "unique", base=4, near=8, free=1),
    Recipe("mixed", "unique", 0.3, base=3, near=6, free=5, empty="one"),
    Recipe("aligned", "unique", base=1, near=10, free=0, sized=True, paired=True),
    Recipe("mixed", "unique", base=0, near=3, free=1),
    Recipe("aligned", near=0, free=0, lone=1),
    Recipe("twisted", base=6, near=0, free=1, sized=True),
    Recipe("mixed", "unique", base=1, near=2, free=0, keys_used=2),
    Recipe("mixed", "small", 0.2, base=1, near=4, free=2, keys_used=2),
    Recipe("aligned", "constant", 0.1, near=4, free=2, sized=True, paired=True),
    Recipe("mixed", "mirror", base=0, near=8, free=4, keys_used=3),
    Recipe("aligned", near=0, free=0, lone=2),
    Recipe("mixed", "unique", 0.5, base=3, near=3, free=3, keys_used=2),
    Recipe("aligned", base=0, near=0, free=0, crossed=1),
    Recipe("aligned", "mirror", base=3, near=0, free=0, sized=True, null_group=True),
    Recipe("mixed", "constant", 0.3, base=4, near=4, free=2, double=True),
    Recipe("aligned", base=0, near=0, free=0, crossed=2),
    Recipe("shifted", "small", near=4, free=0, sized=True),
    Recipe("mixed", "mirror", 0.1, base=1, near=1, free=2, keys_used=2),
    Recipe("shifted", "unique", 0.2, near=8, free=4, sized=True),
    Recipe("mixed", "unique", base=2, near=2, free=0, keys_used=3),
    Recipe("mixed", "small", 0.1, base=10, near=6, free=4, large=1),
)

# Additional recipes, for large limits and for values found by trial.
LARGE = tuple(Recipe("aligned", free=0, near=0, large=turn) for turn in range(1, 9))
POINTS = (
    Recipe("aligned", points="telling"),
    Recipe("aligned", points="pool"),
    Recipe("mixed", "small", 0.1, points="pool"),
    Recipe("aligned", points="telling", first=1),
    Recipe("aligned", points="telling", sized=True),
    Recipe("mixed", nulls=0.6, points="pool", keys_used=2),
    Recipe("aligned", points="telling", first=2),
    Recipe("mixed", points="pool", empty="one"),
    Recipe("mixed", points="pool", empty="one"),
    *(Recipe("aligned", points="twins", first=turn) for turn in range(4)),
)
# The most additional recipes for a pair.
CALLED_FOR = 22
