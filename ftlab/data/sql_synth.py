"""Text-to-SQL questions from a seeded generator: the data of the quickstart, offline, with rows to execute queries on.

A *domain* (music, hospital, ...) has two or three kinds of things with typed columns; a *schema* is one variant of a
domain: some of its tables, some of their columns, one naming style. Each domain belongs to one split, so the tables of
validation and test never occur in training. ``db_id`` alone determines the schema and its table rows; the seed only
selects the questions.

The SQL has one canonical text per question, in the style of b-mc2/sql-create-context: upper-case keywords,
``T1``/``T2`` in joins with the parent table first, text in double quotes, ``COUNT(*)``, ``<>``, ``NOT x IN``, no ASC,
no semicolon.

Source: written for this project; no other data set is copied. Needs the standard library only.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

SPLITS = ("train", "validation", "test")
VARIANTS = 6
"""Number of schemas made from one domain."""

_DOMAINS = """
train music
singer name=person country=country age=18-75 genre=Pop,Rock,Jazz,Folk,Blues net_worth=20-900
album>singer title=title year=1965-2022 sales=1000-90000 label=Polar,Astra,Nordlys,Delta format=vinyl,tape,digital
concert>singer venue=hall city=city year=1999-2024 attendance=200-9000 weather=sunny,rainy,cloudy
train hospital
doctor name=person specialty=cardiology,oncology,surgery,neurology salary=60000-210000 hire_year=1990-2023 ward=A,B,C,D
patient>doctor name=person age=1-95 city=city blood_type=A+,B+,O+,AB- weight=30-120
train school
teacher name=person subject=math,physics,history,biology age=24-67 home_town=city experience=1-40
course>teacher title=title credits=1-12 semester=spring,summer,autumn room=code students=5-120
train aviation
airline name=firm country=country fleet_size=4-400 founded=1930-2015 alliance=Star,Oneworld,SkyTeam
flight>airline flight_number=code origin=city destination=city distance=150-9800 price=40-1900
train football
club name=team city=city stadium=hall founded=1880-1990 coach=person
player>club name=person position=goalkeeper,defender,midfielder,striker age=17-39 goals=0-40 nationality=country
train publishing
author name=person nationality=country birth_year=1900-1995 awards=0-12 language=English,French,Spanish,Hindi
book>author title=title pages=80-900 price=5-60 genre=crime,poetry,fantasy,romance year=1950-2023
train retail
store name=firm city=city manager=person opened=1970-2022 floor_area=100-5000
product>store product_name=thing category=toys,garden,kitchen,sports price=2-800 stock=0-500 brand=firm
train banking
branch name=firm city=city assets=100-9000 director=person staff=4-90
loan>branch customer=person amount=500-90000 status=open,paid,late rate=1-15 year=2001-2024
train cinema
director name=person country=country age=28-88 oscars=0-6 style=drama,comedy,thriller,horror
movie>director title=title year=1950-2023 budget=1-300 rating=1-10 language=English,Korean,Italian,Danish
train railway
station name=hall city=city platforms=1-24 opened=1850-2010 zone=north,south,east,west
train>station train_name=title operator=firm speed=60-320 departure=morning,noon,evening,night seats=80-900
train university
department name=title building=hall budget=100-9000 faculty=arts,science,law,medicine head=person
student>department name=person age=17-35 grade=1-10 city=city level=bachelor,master,doctoral
train zoo
keeper name=person shift=morning,evening,night salary=20000-60000 experience=0-35 diploma=college,school,none
animal>keeper name=pet species=lion,zebra,otter,parrot,wolf age=1-40 weight=2-900 diet=meat,plants,fish
train city
mayor name=person party=Green,Liberal,Labour,Centre age=30-80 votes=1000-90000 term=1-5
town>mayor town_name=city population=500-90000 region=coast,valley,hills,plain area=5-700 river=title
train restaurant
chef name=person cuisine=Thai,Greek,Mexican,Indian age=20-70 stars=0-3 hometown=city
dish>chef dish_name=thing price=4-90 calories=90-1500 course=starter,main,dessert spice=mild,medium,hot
train software
developer name=person team=core,web,mobile,data salary=30000-190000 country=country seniority=junior,senior,lead
bug>developer code=code severity=low,medium,high,critical days_open=0-400 module=parser,server,client votes=0-90
train museum
artist name=person country=country birth_year=1500-1980 movement=cubism,realism,baroque,pop_art works=5-400
painting>artist title=title year=1520-2020 value=10-9000 material=oil,ink,acrylic,pastel height=20-400
train farming
farm name=firm region=north,south,east,west hectares=10-900 owner=person founded=1850-2010
tractor>farm model=code maker=firm horsepower=40-400 year=1980-2023 fuel=diesel,electric,hybrid
crop>farm crop_name=thing season=spring,summer,autumn,winter tons=1-900 price=10-400
train shipping
harbor name=city country=country depth=6-40 berths=2-60 climate=warm,cold,mild
ship>harbor ship_name=title type=tanker,ferry,cruiser,trawler tonnage=500-90000 built=1950-2022 captain=person
train television
channel name=firm owner=person language=English,Spanish,German,Arabic share=1-40 launched=1950-2015
show>channel title=title episodes=4-300 genre=news,comedy,drama,quiz host=person viewers=100-9000
train law
lawyer name=person field=tax,family,labor,patent fee=90-900 age=25-75 city=city
trial>lawyer case_number=code verdict=guilty,innocent,settled year=1990-2024 duration=1-300 judge=person
train hotel
hotel name=hall city=city stars=1-5 rooms=10-600 chain=firm
guest>hotel name=person country=country nights=1-30 bill=90-9000 purpose=business,leisure,family
train cycling
cyclist name=person team=team country=country age=18-42 height=155-200
race>cyclist race_name=title distance=20-300 year=1990-2024 terrain=flat,hilly,mountain prize=500-90000
train energy
company name=firm headquarters=city revenue=10-9000 employees=10-9000 sector=solar,wind,hydro,gas
plant>company plant_name=hall capacity=5-900 opened=1960-2022 status=active,closed,planned state=city
train library
librarian name=person desk=front,archive,media age=22-68 hired=1985-2023 salary=20000-70000
magazine>librarian title=title issue=1-400 topic=science,fashion,travel,politics pages=20-200 price=1-20
train gaming
studio name=firm country=country employees=3-900 founded=1980-2020 engine=Unity,Unreal,Godot
game>studio title=title genre=puzzle,racing,strategy,shooter score=1-100 price=0-90 platform=console,mobile,desktop
train wedding
planner name=person city=city fee=300-9000 rating=1-10 specialty=beach,garden,castle
wedding>planner venue=hall guests=10-400 cost=1000-90000 month=May,June,July,August year=2005-2024
train insurance
agent name=person region=north,south,east,west commission=1-30 clients=5-400 office=city
policy>agent policy_number=code type=home,auto,life,travel premium=50-2000 holder=person coverage=1000-90000
train wine
winery name=firm region=Rioja,Tuscany,Mosel,Douro founded=1700-2015 acres=5-900 owner=person
wine>winery wine_name=title grape=Merlot,Malbec,Riesling,Syrah year=1980-2022 score=70-100 price=6-400
train taxi
driver name=person license=code age=21-70 rating=1-5 district=harbor,center,airport,suburb
ride>driver passenger=person distance=1-80 fare=4-300 payment=cash,card,app day=Monday,Friday,Sunday
train election
candidate name=person party=Green,Liberal,Labour,Centre age=25-82 donations=100-90000 state=city
debate>candidate location=hall topic=economy,health,schools,climate year=1990-2024 audience=50-9000
train architecture
architect name=person nationality=country age=26-90 school=modern,gothic,classic awards=0-20
bridge>architect bridge_name=title length=20-4000 city=city built=1850-2020 material=steel,stone,wood,concrete
tower>architect tower_name=hall height=30-700 floors=5-120 use=office,hotel,housing
train theatre
actor name=person age=16-85 hometown=city roles=1-90 training=academy,self_taught,studio
play>actor title=title acts=1-5 year=1960-2024 kind=tragedy,comedy,musical tickets=50-2000
validation astronomy
observatory name=hall country=country altitude=100-5000 inaugurated=1850-2015 climate=dry,humid,polar
telescope>observatory telescope_name=title aperture=1-40 kind=radio,optical,infrared cost=10-900 astronomer=person
validation orchestra
conductor conductor_name=person nationality=country age=28-85 seasons=1-30 repertoire=baroque,modern,romantic
symphony>conductor title=title minutes=15-90 composer=person premiere_year=1800-2020 key=major,minor
validation postal
courier name=hall town=city clerks=1-40 daily_letters=100-9000 counter=open,closed
parcel>courier tracking=code weight=1-30 recipient=person service=express,standard,registered postage=3-90
validation skiing
resort name=hall valley=title lifts=2-60 snow_depth=20-400 level=easy,medium,expert
skier>resort skier_name=person age=8-70 country=country equipment=skis,snowboard,sled speed=20-130
test mountaineering
mountain name=title range=Alps,Andes,Rockies,Himalaya height=900-8800 country=country prominence=100-4000
climber>mountain name=person age=18-65 ascents=1-40 gear=rope,oxygen,none sponsor=firm
test pharmacy
pharmacist name=person degree=bachelor,master,doctorate salary=40000-120000 city=city shift=day,night,weekend
medicine>pharmacist medicine_name=thing dosage=5-900 form=tablet,syrup,cream,drops cost=2-400 producer=firm
test bakery
baker name=person borough=Queens,Bronx,Harlem,Soho age=19-70 ovens=1-9 signature=bread,cake,pie
pastry>baker pastry_name=thing flavor=vanilla,lemon,almond,cocoa sugar=2-80 price=1-30 sold=10-900
recipe>baker title=title minutes=10-240 difficulty=easy,medium,hard
test volcano
volcano name=title country=country elevation=300-6800 kind=shield,stratovolcano,caldera last_activity=1500-2023
eruption>volcano code=code year=1600-2023 magnitude=1-8 alert=green,yellow,orange,red evacuated=0-9000
test fashion
designer name=person label=firm age=22-80 country=country followers=100-90000
garment>designer garment_name=thing fabric=silk,wool,cotton,linen price=30-3000 season=spring,autumn,winter size=1-60
test chess
grandmaster name=person federation=country elo=2300-2860 birth_year=1930-2005 opening=Sicilian,French,Caro_Kann
tournament>grandmaster event=title city=city rounds=5-15 prize_fund=500-90000 format=blitz,rapid,classical
test fishing
vessel name=title port=city crew=2-40 tonnage=10-900 flag=country
catch>vessel batch=code species=cod,tuna,herring,salmon kilos=50-9000 quota=low,normal,exceeded depth=10-400
test podcast
podcast name=title host=person subscribers=100-90000 category=science,crime,business,sports started=2005-2023
episode>podcast title=title minutes=10-180 guest=person downloads=50-9000 season=1-12
test beekeeping
beekeeper name=person county=Kent,Devon,Surrey,Essex experience=1-50 hives=1-90 honey_kilos=10-900
colony>beekeeper queen=pet temperament=calm,nervous,aggressive bees=1000-60000 origin=city mite_count=0-90
"""

_COMPOSED = 160
_NOUNS = """
lamp lantern carpet pillow mattress sofa cabinet shelf mirror clock radio camera tripod printer scanner
router server keyboard monitor tablet laptop satellite rocket drone robot sensor battery engine turbine
boiler pump valve pipeline tank crane bulldozer truck trailer van scooter motorcycle bicycle tram ferry
canoe kayak yacht submarine glider balloon helicopter airport runway hangar garage depot warehouse factory
workshop mill quarry mine well dam canal tunnel road highway street avenue square park garden fountain
statue monument castle palace temple church chapel abbey cemetery village county province kingdom island
peninsula lake waterfall glacier desert canyon cave forest orchard vineyard meadow pasture barn stable
kennel aquarium fern flower shrub vegetable fruit cheese sausage soup salad sandwich pizza noodle sauce
spice drink juice beer cocktail perfume shampoo toothbrush towel blanket curtain ladder hammer drill saw
screw bolt brick tile beam pillar column window door gate fence roof attic cellar kitchen bathroom balcony
elevator lawsuit contract invoice receipt voucher coupon ticket passport visa permit certificate diploma
exam quiz lecture seminar conference webinar newsletter blog article essay poem novel diary atlas dictionary
comic puzzle toy doll kite drum guitar violin piano flute trumpet choir band festival parade carnival circus
casino theater gallery exhibition auction market shop supermarket kiosk bazaar mall salon spa gym stadium
arena rink pool court league season match team coach referee sponsor fan gymnast boxer wrestler swimmer
runner archer golfer surfer sailor pilot astronaut mechanic plumber electrician carpenter painter sculptor
potter weaver tailor barber butcher grocer florist jeweler optician dentist surgeon nurse midwife therapist
veterinarian professor tutor pupil scholar scientist chemist physicist engineer programmer analyst
accountant auditor broker banker investor tenant landlord janitor guard soldier officer sergeant detective
suspect witness prisoner judge senator minister ambassador diplomat monarch knight pirate wizard dragon
"""
_NUMBERS = """
length width volume mileage tuition rent tax profit loss margin discount bonus pension points wins defeats
laps visits clicks likes desks doors wheels pixels memory voltage frequency temperature pressure humidity
rainfall density mass radius slope perimeter protein fiber salt hours days weeks delay interval streak tier
mark credit debt deposit refund toll fine income expense turnover payroll headcount members readers
listeners installs errors crashes commits lines chapters words letters stamps medals trophies assists saves
blocks fouls penalties passengers luggage cargo range altitude latitude injuries deaths births marriages
voters jurors appeals charges convictions patents papers citations grants loans shares dividends bonds
coupons yield inflation wage overtime absences warnings complaints returns reviews ranking lifespan
thickness diameter curvature brightness contrast loudness tempo pitch beats strings keys pedals pieces
layers branches leaves roots seeds blossoms harvests eggs cubs bites stings legs wings teeth claws
total_cost unit_price daily_wage max_load top_speed water_depth ticket_price page_count word_count
shelf_life
"""
_TEXTS = """
color brand owner sponsor supplier vendor dealer builder inventor founder editor critic referee captain
trainer nurse mentor guardian guide translator province street suburb island continent ocean planet dialect
religion currency mood terrain soil texture pattern metal gem wood shape logo motto slogan nickname alias
surname initials occupation hobby talent rival partner spouse sibling ally enemy employer landlord witness
judge suspect motive weapon alibi clue outcome result phase stage priority urgency category topic theme plot
ending mascot anthem flag_color emblem symbol icon font layout template license warranty battery_type
fuel_type engine_type road_type skin_type hair_color eye_color home_town birth_place work_place main_office
sales_region time_zone market_segment target_group access_level payment_method
"""
_OPTIONS = """
red blue green yellow black white silver gold small large tiny huge light dark soft hard rough smooth fast
slow early late fresh dry wet hot cold warm cool open closed active idle broken fixed new old rare common
cheap costly public private local global urban rural round square oval flat steep deep shallow basic premium
standard deluxe manual automatic digital analog
"""
_KINDS = ("1-40", "1-100", "10-900", "50-900", "100-9000", "500-90000")

_WORDS = {
    "first": "Anna Ben Carla David Elena Frank Grace Hugo Irene Jonas Kate Leo Maria Nils Olga Paul Quinn Rosa Sven",
    "last": "Adams Baker Castro Diaz Evans Fischer Garcia Hansen Ito Jensen Keller Lopez Meyer Novak Olsen Park Rossi "
    "Silva Tanaka Weber Young Zhang Moreau Okafor Lindqvist Petrov",
    "adjective": "Silent Golden Broken Hidden Crimson Distant Frozen Gentle Hollow Iron Last Little Lonely Northern "
    "Quiet Rising Sacred Secret Velvet Wild Winter",
    "noun": "River Garden Mirror Harbor Forest Shadow Island Crown Bridge Empire Falcon Lantern Meadow Ocean Promise "
    "Station Storm Summer Tiger Valley Voyage",
    "city": "Berlin Lyon Porto Oslo Madrid Chicago Boston Denver Kyoto Osaka Lima Quito Cairo Nairobi Perth Dublin "
    "Leeds Turin Vienna Prague Gdansk Austin Seattle Toronto Montreal Hanoi",
    "country": "France Spain Germany Norway Japan Brazil Canada Kenya India Mexico Italy Poland Chile Egypt Ireland "
    "Peru Portugal Sweden Turkey Vietnam",
    "suffix": "Group Brothers Partners Holdings Works Trading",
    "mascot": "Hawks Lions Rovers Comets Bears Wolves Pirates Giants",
    "place": "Hall Park House Plaza Arena Court",
    "stuff": "Lamp Basket Kettle Blanket Cream Biscuit Ribbon Powder Jacket Mixture Roll Bowl",
    "pet": "Bella Charlie Daisy Felix Ginger Luna Milo Nala Oscar Pepper Rocky Simba Toby Willow Zoe Amber Biscuit "
    "Coco Duke Ella Flora Gus Hazel Ivy Jasper",
}
_POOLS = {name: words.split() for name, words in _WORDS.items()}
_PAIRS = {
    "person": ("first", "last"),
    "title": ("adjective", "noun"),
    "thing": ("adjective", "stuff"),
    "firm": ("last", "suffix"),
    "team": ("city", "mascot"),
    "hall": ("last", "place"),
}

_COMPARISONS = (
    (">", ("above", "more than", "greater than")),
    ("<", ("below", "less than")),
    (">=", ("at least",)),
    ("<=", ("at most",)),
)
_YEARS = ((">", ("after",)), ("<", ("before",)))
_AGGREGATES = (
    ("AVG", ("average",)),
    ("MAX", ("maximum", "highest")),
    ("MIN", ("minimum", "lowest")),
    ("SUM", ("total",)),
)
_ADJECTIVES = {  # column -> (comparative for >, for <, superlative for the most, for the least)
    "age": ("older than", "younger than", "oldest", "youngest"),
    "price": ("more expensive than", "cheaper than", "most expensive", "cheapest"),
    "height": ("taller than", "shorter than", "tallest", "shortest"),
    "weight": ("heavier than", "lighter than", "heaviest", "lightest"),
}


@dataclass(frozen=True)
class Column:
    """A column: its name in the schema, its words in a question, and the kind of its values.

    ``kind`` is ``"key"``, the name of a pool of words, ``"low-high"`` for integers or ``"a,b,c"`` for a closed choice.
    """

    name: str
    words: str
    kind: str

    @property
    def numeric(self) -> bool:
        """True for a number that can be compared and averaged (not for keys, which nobody averages)."""
        return self.kind[0].isdigit() and "-" in self.kind

    @property
    def year(self) -> bool:
        """True for a year, which questions call "after" another number, not "above" it."""
        return self.numeric and int(self.kind.split("-")[0]) >= 1000 and int(self.kind.split("-")[1]) < 2100

    @property
    def type(self) -> str:
        """The SQL type, one of the two that sql-create-context uses."""
        return "INTEGER" if self.numeric or self.kind == "key" else "VARCHAR"


@dataclass(frozen=True)
class Table:
    """One table: ``columns[0]`` describes a row (a name, a title); ``foreign`` refers to the parent's key."""

    name: str
    noun: str
    columns: tuple[Column, ...]
    key: Column
    foreign: Column | None

    @property
    def nouns(self) -> str:
        """The plural, for questions."""
        return plural(self.noun)

    @property
    def sql(self) -> str:
        """``CREATE TABLE`` with the keys before the columns, as a prompt shows it."""
        keys = [self.key] + ([self.foreign] if self.foreign else [])
        columns = ", ".join(f"{c.name} {c.type}" for c in (*keys, *self.columns))
        return f"CREATE TABLE {self.name} ({columns})"


@dataclass(frozen=True)
class Schema:
    """One database: the parent table first, then the tables that refer to it."""

    db_id: str
    tables: tuple[Table, ...]

    @property
    def context(self) -> str:
        """All ``CREATE TABLE`` statements joined by ``"; "``."""
        return "; ".join(table.sql for table in self.tables)


def schemas(split: str) -> tuple[Schema, ...]:
    """Return every schema of ``split`` (``"train"``, ``"validation"`` or ``"test"``); the result never changes."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    return tuple(schema for name, schema in _schemas().values() if name == split)


def table_rows(db_id: str) -> dict[str, list[tuple[int | str, ...]]]:
    """Return the rows of each table of ``db_id``, in the column order of its ``CREATE TABLE``."""
    schema = _schema(db_id)
    rng = Random(f"rows/{db_id}")
    rows: dict[str, list[tuple[int | str, ...]]] = {}
    parents = range(1, rng.randint(10, 14) + 1)
    for table in schema.tables:
        count = rng.randint(18, 24) if table.foreign else len(parents)
        # Some parents get no children, so that questions about parents "without any" have an answer.
        links = rng.sample(parents, len(parents) - 3)
        keys = [(i, rng.choice(links)) if table.foreign else (i,) for i in range(1, count + 1)]
        values = [_values(column.kind, count, rng, unique=i == 0) for i, column in enumerate(table.columns)]
        rows[table.name] = [(*key, *row) for key, row in zip(keys, zip(*values, strict=True), strict=True)]
    return rows


def database(db_id: str) -> sqlite3.Connection:
    """Return a new in-memory SQLite database that holds the tables and rows of ``db_id``."""
    connection = sqlite3.connect(":memory:")
    for table in _schema(db_id).tables:
        connection.execute(table.sql)
    for name, rows in table_rows(db_id).items():
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return connection


def generate(split: str, rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Return ``rows`` questions of ``split`` with ``id, question, context, answer, db_id``; more rows only append.

    Every answer returns at least one row on ``database(db_id)``. No schema has the same question twice.
    """
    return [row for _, row in zip(range(rows), _stream(split, seed), strict=False)]


def _stream(split: str, seed: int) -> Iterator[dict[str, str]]:
    rng = Random(f"{split}/{seed}")
    pool = schemas(split)
    connections = {schema.db_id: database(schema.db_id) for schema in pool}
    content = {schema.db_id: table_rows(schema.db_id) for schema in pool}
    seen: set[tuple[str, str]] = set()
    while True:
        schema = rng.choice(pool)
        ask = _Asker(schema, content[schema.db_id], rng)
        question, answer = ask()
        if (schema.db_id, question) in seen:
            continue
        seen.add((schema.db_id, question))
        if connections[schema.db_id].execute(answer).fetchone() in (None, (None,)):
            continue
        yield {
            "id": f"{split}-{seed}-{len(seen)}",
            "question": question,
            "context": schema.context,
            "answer": answer,
            "db_id": schema.db_id,
        }


class _Asker:
    """Asks about one schema: each ``ask_*`` method returns a question and its SQL."""

    def __init__(self, schema: Schema, rows: dict[str, list[tuple[int | str, ...]]], rng: Random) -> None:
        self.rng, self.rows, self.tables = rng, rows, schema.tables

    def __call__(self) -> tuple[str, str]:
        joins = len(self.tables) > 1 and self.rng.random() < 0.45
        question, answer = self.rng.choice(_MULTI if joins else _SINGLE)(self)
        return question[0].upper() + question[1:], answer

    # --- choosing -----------------------------------------------------------------------------------------------

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def table(self) -> Table:
        return self.rng.choice(self.tables)

    def pair(self) -> tuple[Table, Table, str, str]:
        """Return a parent, a child, the FROM clause that joins them, and the key condition of the join."""
        parent, child = self.tables[0], self.rng.choice(self.tables[1:])
        assert child.foreign is not None
        join = f"FROM {parent.name} AS T1 JOIN {child.name} AS T2 ON T1.{parent.key.name} = T2.{child.foreign.name}"
        return parent, child, join, f"T1.{parent.key.name}"

    def column(self, table: Table) -> Column:
        """Return a column to show: half of the time the one that describes the row, as people do."""
        return table.columns[0] if self.rng.random() < 0.5 else self.rng.choice(table.columns)

    def number(self, table: Table) -> Column:
        return self.rng.choice([c for c in table.columns if c.numeric])

    def group(self, table: Table) -> Column:
        """Return a column whose values repeat."""
        return self.rng.choice([c for c in table.columns[1:] if not c.numeric])

    def value(self, table: Table, column: Column) -> int | str:
        at = len(table.columns) - table.columns.index(column)
        return self.rng.choice([row[-at] for row in self.rows[table.name]])

    # --- conditions: English and SQL ------------------------------------------------------------------------------

    def condition(self, table: Table, avoid: Column | None = None, prefix: str = "") -> tuple[str, str]:
        """Return a relative clause that follows the noun of ``table``, and the SQL after WHERE."""
        column = self.rng.choice([c for c in table.columns if c != avoid])
        name, words, value = prefix + column.name, column.words, self.value(table, column)
        if column.numeric:
            return self._compare(column, name, value)
        kind = self.rng.random()
        if kind < 0.12:
            return f"whose {words} is not {value}", f'{name} <> "{value}"'
        if kind < 0.24:
            part = str(value).split()[-1]
            return f"whose {words} contains {part}", f'{name} LIKE "%{part}%"'
        verb = self.pick("whose {} is {}", "with {} {}")
        return verb.format(words, value), f'{name} = "{value}"'

    def _compare(self, column: Column, name: str, value: int | str) -> tuple[str, str]:
        if self.rng.random() < 0.1:
            return f"whose {column.words} is {value}", f"{name} = {value}"
        op, phrases = self.rng.choice(_YEARS if column.year else _COMPARISONS)
        if column.words in _ADJECTIVES and op in "<>" and self.rng.random() < 0.4:
            return f"{_ADJECTIVES[column.words][op == '<']} {value}", f"{name} {op} {value}"
        phrase = self.pick(*phrases)
        clause = self.pick(f"whose {column.words} is {phrase}", f"with {column.words} {phrase}")
        return f"{clause} {value}", f"{name} {op} {value}"

    def conditions(self, table: Table, avoid: Column | None = None, prefix: str = "") -> tuple[str, str]:
        """Return one condition, or sometimes two joined by AND or OR."""
        words, sql = self.condition(table, avoid, prefix)
        if self.rng.random() < 0.8:
            return words, sql
        for _ in range(9):
            more, other = self.condition(table, avoid, prefix)
            if other.split()[0] != sql.split()[0]:
                link = self.pick("and", "and", "or")
                return f"{words} {link} {more}", f"{sql} {link.upper()} {other}"
        return words, sql

    def superlative(self, table: Table) -> tuple[str, str]:
        """Return ``(words around the noun {}, ORDER BY column [DESC])`` for the largest or smallest number."""
        column = self.number(table)
        least = self.rng.random() < 0.4
        order = column.name if least else f"{column.name} DESC"
        if column.words in _ADJECTIVES and self.rng.random() < 0.5:
            return f"{_ADJECTIVES[column.words][2 + least]} {{}}", order
        extreme = "lowest" if least else "highest"
        return f"{{}} with the {extreme} {column.words}", order

    # --- questions on one table -----------------------------------------------------------------------------------

    def ask_list(self) -> tuple[str, str]:
        table = self.table()
        a, b = self.rng.sample(table.columns, 2)
        if self.rng.random() < 0.4:
            words, columns = a.words, a.name
        else:
            words, columns = f"{a.words} and {b.words}", f"{a.name}, {b.name}"
        question = self.pick("List the {} of all {}.", "What are the {} of all the {}?", "Show the {} of every {}.")
        noun = table.noun if "every" in question else table.nouns
        return question.format(words, noun), f"SELECT {columns} FROM {table.name}"

    def ask_where(self) -> tuple[str, str]:
        table = self.table()
        shown = self.column(table)
        clause, where = self.conditions(table, avoid=shown)
        question = self.pick(
            "What is the {} of the {n} {}?", "What are the {} of the {ns} {}?", "List the {} of {ns} {}.",
            "Find the {} of the {ns} {}.", "For the {ns} {1}, show the {0}.", "Give me the {} of all {ns} {}.",
        )  # fmt: skip
        text = question.format(shown.words, clause, n=table.noun, ns=table.nouns)
        return text, f"SELECT {shown.name} FROM {table.name} WHERE {where}"

    def ask_two_where(self) -> tuple[str, str]:
        table = self.table()
        a, b = self.rng.sample(table.columns, 2)
        clause, where = self.condition(table, avoid=b)
        question = self.pick("Show the {} and {} of {} {}.", "What are the {} and {} of the {} {}?")
        return question.format(a.words, b.words, table.nouns, clause), (
            f"SELECT {a.name}, {b.name} FROM {table.name} WHERE {where}"
        )

    def ask_count(self) -> tuple[str, str]:
        table = self.table()
        if self.rng.random() < 0.15:
            question = self.pick("How many {} are there?", "Count the {}.", "What is the number of {}?")
            return question.format(table.nouns), f"SELECT COUNT(*) FROM {table.name}"
        clause, where = self.conditions(table)
        question = self.pick("How many {} are there {}?", "Count the {} {}.", "What is the number of {} {}?")
        return question.format(table.nouns, clause), f"SELECT COUNT(*) FROM {table.name} WHERE {where}"

    def ask_count_distinct(self) -> tuple[str, str]:
        table = self.table()
        column = self.group(table)
        question = self.pick("How many different {} values do the {} have?", "Count the distinct {} values of the {}.")
        return question.format(column.words, table.nouns), f"SELECT COUNT(DISTINCT {column.name}) FROM {table.name}"

    def ask_distinct(self) -> tuple[str, str]:
        table = self.table()
        column = self.group(table)
        question = self.pick("What are the different {} values of the {}?", "List each distinct {} of the {}.",
                             "Show the {} of all {} without repeats.")  # fmt: skip
        return question.format(column.words, table.nouns), f"SELECT DISTINCT {column.name} FROM {table.name}"

    def ask_aggregate(self) -> tuple[str, str]:
        table = self.table()
        column = self.number(table)
        function, names = self.rng.choice(_AGGREGATES)
        question = self.pick("What is the {} {} of all {}?", "Find the {} {} of the {}.", "Show the {} {} of {}.")
        text = question.format(self.pick(*names), column.words, table.nouns)
        sql = f"SELECT {function}({column.name}) FROM {table.name}"
        if self.rng.random() < 0.35:
            return text, sql
        clause, where = self.condition(table, avoid=column)
        return f"{text[:-1]} {clause}{text[-1]}", f"{sql} WHERE {where}"

    def ask_group(self) -> tuple[str, str]:
        table = self.table()
        by = self.group(table)
        if self.rng.random() < 0.5:
            question = self.pick("How many {ns} are there for each {}?", "Show each {} and the number of {ns} with it.",
                                 "Count the {ns} of each {}.")  # fmt: skip
            shown = "COUNT(*)"
            text = question.format(by.words, ns=table.nouns)
        else:
            column = self.number(table)
            function, names = self.rng.choice(_AGGREGATES)
            question = self.pick("What is the {} {} of the {} for each {}?", "Show the {} {} of {} by {}.")
            shown = f"{function}({column.name})"
            text = question.format(self.pick(*names), column.words, table.nouns, by.words)
        return text, f"SELECT {by.name}, {shown} FROM {table.name} GROUP BY {by.name}"

    def ask_having(self) -> tuple[str, str]:
        table = self.table()
        by, count = self.group(table), self.rng.randint(1, 5)
        if self.rng.random() < 0.4:
            question = self.pick("What is the most common {} of the {}?", "Which {} do the most {} have?")
            text, rest = question.format(by.words, table.nouns), "ORDER BY COUNT(*) DESC LIMIT 1"
        else:
            question = self.pick("Which {} values have more than {} {}?", "Show every {} shared by more than {} {}.",
                                 "Find the {} values with over {} {}.")  # fmt: skip
            text, rest = question.format(by.words, count, table.nouns), f"HAVING COUNT(*) > {count}"
        return text, f"SELECT {by.name} FROM {table.name} GROUP BY {by.name} {rest}"

    def ask_order(self) -> tuple[str, str]:
        table = self.table()
        shown, by = self.rng.sample(table.columns, 2)
        descending = self.rng.random() < 0.5
        question = self.pick("List the {} of the {} {} {}.", "Show the {} of all {}, {} {}.")
        order = self.pick("sorted by", "ordered by", "in order of") + " " + by.words
        way = (
            self.pick("in descending order", "from high to low") if descending else self.pick("", "in ascending order")
        )
        text = question.format(shown.words, table.nouns, order, way).replace(" .", ".")
        return text, f"SELECT {shown.name} FROM {table.name} ORDER BY {by.name}" + " DESC" * descending

    def ask_superlative(self) -> tuple[str, str]:
        table = self.table()
        shown = self.column(table)
        words, order = self.superlative(table)
        count = 1 if self.rng.random() < 0.6 else self.rng.randint(2, 6)
        noun = words.format(table.noun if count == 1 else table.nouns)
        many = "" if count == 1 else f"{count} "
        question = self.pick("What is the {} of the {}{}?", "Show the {} of the {}{}.", "Find the {} of the {}{}.")
        return question.format(shown.words, many, noun), (
            f"SELECT {shown.name} FROM {table.name} ORDER BY {order} LIMIT {count}"
        )

    def ask_nested(self) -> tuple[str, str]:
        table = self.table()
        shown, column = self.column(table), self.number(table)
        above = self.rng.random() < 0.6
        side = (
            self.pick("above", "higher than", "more than") if above else self.pick("below", "lower than", "less than")
        )
        question = self.pick("Which {2} have {1} {3} the average? Give the {0}.",
                             "List the {0} of {2} whose {1} is {3} the average.",
                             "Show the {0} of the {2} with {1} {3} the average {1}.")  # fmt: skip
        return question.format(shown.words, column.words, table.nouns, side), (
            f"SELECT {shown.name} FROM {table.name} WHERE {column.name} {'>' if above else '<'} "
            f"(SELECT AVG({column.name}) FROM {table.name})"
        )

    # --- questions on a parent and its children -------------------------------------------------------------------

    def ask_children(self) -> tuple[str, str]:
        parent, child, join, _ = self.pair()
        shown = self.column(child)
        clause, where = self.condition(parent, prefix="T1.")
        question = self.pick("What are the {} of the {} of the {} {}?", "List the {} of {} that belong to the {} {}.",
                             "Find the {} of all {} of {} {}.")  # fmt: skip
        noun = parent.nouns if "of all" in question else parent.noun
        return question.format(shown.words, child.nouns, noun, clause), f"SELECT T2.{shown.name} {join} WHERE {where}"

    def ask_parent(self) -> tuple[str, str]:
        parent, child, join, _ = self.pair()
        shown = self.column(parent)
        clause, where = self.condition(child, prefix="T2.")
        question = self.pick("What is the {} of the {} of the {} {}?",
                             "Show the {} of the {} that the {} {} belongs to.",
                             "For the {2} {3}, what is the {0} of the {1}?")  # fmt: skip
        return question.format(shown.words, parent.noun, child.noun, clause), (
            f"SELECT T1.{shown.name} {join} WHERE {where}"
        )

    def ask_both(self) -> tuple[str, str]:
        parent, child, join, _ = self.pair()
        a, b = self.column(parent), self.column(child)
        question = self.pick("Show the {1} of each {3} and the {0} of its {2}.",
                             "List every {3} by {1} together with the {0} of its {2}.")  # fmt: skip
        return question.format(a.words, b.words, parent.noun, child.noun), f"SELECT T2.{b.name}, T1.{a.name} {join}"

    def ask_count_children(self) -> tuple[str, str]:
        parent, child, join, _ = self.pair()
        clause, where = self.condition(parent, prefix="T1.")
        question = self.pick("How many {} does the {} {} have?", "Count the {} of the {} {}.",
                             "What is the number of {} that belong to the {} {}?")  # fmt: skip
        return question.format(child.nouns, parent.noun, clause), f"SELECT COUNT(*) {join} WHERE {where}"

    def ask_per_parent(self) -> tuple[str, str]:
        parent, child, join, key = self.pair()
        shown = self.column(parent)
        if self.rng.random() < 0.5:
            figure, words = "COUNT(*)", f"number of {child.nouns}"
        else:
            column = self.number(child)
            function, names = self.rng.choice(_AGGREGATES)
            figure, words = f"{function}(T2.{column.name})", f"{self.pick(*names)} {column.words} of its {child.nouns}"
        question = self.pick("For each {0}, show the {1} and the {2}.", "What are the {1} and the {2} of each {0}?")
        return question.format(
            parent.noun, shown.words, words
        ), f"SELECT T1.{shown.name}, {figure} {join} GROUP BY {key}"

    def ask_most_children(self) -> tuple[str, str]:
        parent, child, join, key = self.pair()
        shown = self.column(parent)
        question, order = self.rng.choice([
            ("What is the {} of the {} with the most {}?", " DESC"),
            ("Which {1} has the most {2}? Give the {0}.", " DESC"),
            ("Show the {} of the {} that has the largest number of {}.", " DESC"),
            ("What is the {} of the {} with the fewest {}?", ""),
        ])  # fmt: skip
        return question.format(shown.words, parent.noun, child.nouns), (
            f"SELECT T1.{shown.name} {join} GROUP BY {key} ORDER BY COUNT(*){order} LIMIT 1"
        )

    def ask_many_children(self) -> tuple[str, str]:
        parent, child, join, key = self.pair()
        shown, count = self.column(parent), self.rng.randint(1, 4)
        question, op = self.rng.choice([
            ("Which {1} have more than {3} {2}? Show the {0}.", ">"),
            ("List the {0} of {1} that have at least {3} {2}.", ">="),
            ("Find the {0} of the {1} with over {3} {2}.", ">"),
        ])  # fmt: skip
        return question.format(shown.words, parent.nouns, child.nouns, count), (
            f"SELECT T1.{shown.name} {join} GROUP BY {key} HAVING COUNT(*) {op} {count}"
        )

    def ask_childless(self) -> tuple[str, str]:
        parent, child, _, _ = self.pair()
        assert child.foreign is not None
        shown = self.column(parent)
        question = self.pick("What are the {} of the {} without any {}?", "List the {} of {} that have no {}.",
                             "Which {1} do not have {a} {n}? Show the {0}.")  # fmt: skip
        return question.format(shown.words, parent.nouns, child.nouns, a=_article(child.noun), n=child.noun), (
            f"SELECT {shown.name} FROM {parent.name} WHERE NOT {parent.key.name} IN "
            f"(SELECT {child.foreign.name} FROM {child.name})"
        )

    def ask_child_aggregate(self) -> tuple[str, str]:
        parent, child, join, _ = self.pair()
        column = self.number(child)
        function, names = self.rng.choice(_AGGREGATES)
        clause, where = self.condition(parent, prefix="T1.")
        question = self.pick("What is the {} {} of the {} of the {} {}?", "Find the {} {} of {} that belong to {} {}.")
        noun = parent.nouns if "belong" in question else parent.noun
        return question.format(self.pick(*names), column.words, child.nouns, noun, clause), (
            f"SELECT {function}(T2.{column.name}) {join} WHERE {where}"
        )

    def ask_distinct_parents(self) -> tuple[str, str]:
        parent, child, join, _ = self.pair()
        shown = self.column(parent)
        clause, where = self.condition(child, prefix="T2.")
        question = self.pick("Which different {1} have {a} {2} {3}? Show the {0}.",
                             "What are the distinct {} of the {} that have {a} {} {}?")  # fmt: skip
        return question.format(shown.words, parent.nouns, child.noun, clause, a=_article(child.noun)), (
            f"SELECT DISTINCT T1.{shown.name} {join} WHERE {where}"
        )


_Ask = Callable[[_Asker], tuple[str, str]]
_SINGLE: tuple[_Ask, ...] = (
    _Asker.ask_list, _Asker.ask_where, _Asker.ask_where, _Asker.ask_where, _Asker.ask_two_where, _Asker.ask_count,
    _Asker.ask_count, _Asker.ask_count_distinct, _Asker.ask_distinct, _Asker.ask_aggregate, _Asker.ask_aggregate,
    _Asker.ask_group, _Asker.ask_having, _Asker.ask_order, _Asker.ask_superlative,
    _Asker.ask_nested,
)  # fmt: skip
_MULTI: tuple[_Ask, ...] = (
    _Asker.ask_children, _Asker.ask_children, _Asker.ask_parent, _Asker.ask_both, _Asker.ask_count_children,
    _Asker.ask_per_parent, _Asker.ask_most_children, _Asker.ask_many_children, _Asker.ask_childless,
    _Asker.ask_child_aggregate, _Asker.ask_distinct_parents,
)  # fmt: skip


def plural(noun: str) -> str:
    """Return the English plural of a regular noun."""
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _values(kind: str, count: int, rng: Random, unique: bool) -> list[int | str]:
    """Return ``count`` values of ``kind``; all different if ``unique``."""
    if kind[0].isdigit() and "-" in kind:
        low, high = map(int, kind.split("-"))
        step = 1 if high <= 2900 else 50 if high < 10_000 else 500  # round numbers, as people ask for them
        return [max(low, rng.randint(low, high) // step * step) for _ in range(count)]
    seen: list[int | str] = []
    # A column that does not describe the row has few different values, so that groups have several rows.
    few = unique or "," in kind or kind == "code"
    pool: Callable[[], int | str] = lambda: _word(kind, rng)  # noqa: E731
    if not few:
        choices = [_word(kind, rng) for _ in range(7)]
        pool = lambda: rng.choice(choices)  # noqa: E731
    while len(seen) < count:
        value = pool()
        if not unique or value not in seen:
            seen.append(value)
    return seen


def _word(kind: str, rng: Random) -> str:
    if kind == "code":
        return f"{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}-{rng.randint(100, 999)}"
    if kind in _PAIRS:
        return " ".join(rng.choice(_POOLS[name]) for name in _PAIRS[kind])
    return rng.choice(_POOLS[kind] if kind in _POOLS else kind.split(","))


def _schema(db_id: str) -> Schema:
    try:
        return _schemas()[db_id][1]
    except KeyError:
        raise ValueError(f"db_id={db_id!r} is not a schema of sql_synth; its names look like 'music_0'") from None


@cache
def _schemas() -> dict[str, tuple[str, Schema]]:
    """``db_id -> (split, schema)`` for every variant of every domain."""
    found: dict[str, tuple[str, Schema]] = {}
    for block in _domains():
        (split, domain), entities = block[0].split(), block[1:]
        for variant in range(VARIANTS if not domain.startswith("composed") else 2):
            db_id = f"{domain}_{variant}"
            found[db_id] = split, Schema(db_id, _tables(entities, Random(f"schema/{db_id}")))
    return found


def _domains() -> list[list[str]]:
    """Return blocks of lines in the form of _DOMAINS: those of _DOMAINS, and randomly composed ones.

    Because of the composed ones, a model cannot memorise which columns a noun has: it must read the schema.
    """
    return _written() + [_composed(i) for i in range(_COMPOSED)]


def _composed(number: int) -> list[str]:
    rng = Random(f"composed/{number}")
    nouns = rng.sample(_NOUNS.split(), 2)
    numbers, texts = iter(rng.sample(_NUMBERS.split(), 6)), iter(rng.sample(_TEXTS.split(), 6))
    options = _OPTIONS.split()
    lines = [f"train composed{number}"]
    for i, noun in enumerate(nouns):
        name = rng.choice(("name", "title", f"{noun}_name", "code", f"{noun}_code"))
        fields = [f"{name}={'code' if name.endswith('code') else rng.choice(('person', 'title', 'thing', 'firm'))}"]
        fields += [f"{next(numbers)}={rng.choice(_KINDS)}" for _ in range(3)]
        choices = (",".join(rng.sample(options, 4)), ",".join(rng.sample(options, 3)), "city", "country", "person")
        fields += [f"{next(texts)}={rng.choice(choices)}" for _ in range(3)]
        lines.append(" ".join([f"{noun}>{nouns[0]}" if i else noun, *fields]))
    return lines


def _written() -> list[list[str]]:
    blocks: list[list[str]] = []
    for line in _DOMAINS.strip().splitlines():
        if line.startswith(SPLITS) and len(line.split()) == 2:
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def _tables(entities: list[str], rng: Random) -> tuple[Table, ...]:
    """Return one variant: the parent and one child (sometimes only one of them), with some columns of each."""
    many, plain_id = rng.random() < 0.5, rng.random() < 0.5
    parent, *children = entities
    chosen = [parent, rng.choice(children)] if rng.random() < 0.8 else [rng.choice(entities)]
    tables = []
    for line in chosen:
        head, *fields = line.split()
        noun, _, owner = head.partition(">")
        pairs = [field.split("=") for field in fields]
        columns = [Column(name, name.replace("_", " "), kind) for name, kind in pairs]
        first, numbers, texts = columns[0], [c for c in columns if c.numeric], [c for c in columns[1:] if not c.numeric]
        kept = [first, rng.choice(numbers), rng.choice(texts)]  # every table can be averaged and grouped
        spare = [c for c in columns if c not in kept]
        kept += rng.sample(spare, min(len(spare), rng.randint(0, 1)))
        rng.shuffle(rest := kept[1:])
        key = Column("id" if plain_id else f"{noun}_id", f"{noun} id", "key")
        foreign = Column(f"{owner}_id", f"{owner} id", "key") if owner else None
        name = plural(noun) if many else noun
        tables.append(Table(name, noun.replace("_", " "), (first, *rest), key, foreign))
    return tuple(tables)
