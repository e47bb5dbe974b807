"""Closed lists: open questions of which all right answers can be written down, in single words."""

from __future__ import annotations

from collections.abc import Sequence

CLOSED_LISTS = {
    "Name a month of the year.": "January February March April May June July August September "
    "October November December",
    "Name a day of the week.": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "Name a planet of the solar system.": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "Name a chemical element.": "hydrogen helium lithium beryllium boron carbon nitrogen oxygen "
    "fluorine neon sodium magnesium aluminium aluminum silicon phosphorus sulfur chlorine argon "
    "potassium calcium iron copper zinc silver gold tin lead mercury nickel cobalt titanium "
    "chromium manganese uranium platinum iodine bromine krypton xenon radon radium tungsten",
    "Name a colour of the rainbow.": "red orange yellow green blue indigo violet",
    "Name a country in Europe.": "France Germany Italy Spain Portugal Poland Austria Switzerland "
    "Belgium Netherlands Denmark Sweden Norway Finland Iceland Ireland Greece Hungary Romania "
    "Bulgaria Croatia Serbia Slovenia Slovakia Ukraine Estonia Latvia Lithuania Albania Malta "
    "Cyprus Luxembourg Monaco Russia Belarus Moldova Montenegro Andorra",
    "Name a keyword of the Python language.": "False None True and as assert async await break "
    "class continue def del elif else except finally for from global if import in is lambda "
    "nonlocal not or pass raise return try while with yield",
    "Name an animal that lives on a farm.": "cow pig horse sheep goat chicken duck goose turkey "
    "hen rooster donkey dog cat rabbit cattle bull ox lamb calf pony mule llama bee cows pigs "
    "horses goats chickens ducks",
    "Name a continent.": "Africa Antarctica Asia Australia Europe Oceania America",
    "Name a letter of the Greek alphabet.": "alpha beta gamma delta epsilon zeta eta theta iota "
    "kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega",
    "Name a sign of the zodiac.": "Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius "
    "Capricorn Aquarius Pisces",
    "Name a piece of the game of chess.": "king queen rook bishop knight pawn",
    "Name a season of the year.": "spring summer autumn fall winter",
    "Name a capital city in Europe.": "London Paris Berlin Madrid Rome Lisbon Vienna Brussels "
    "Amsterdam Copenhagen Stockholm Oslo Helsinki Dublin Athens Warsaw Prague Budapest Bucharest "
    "Sofia Belgrade Zagreb Bratislava Ljubljana Kiev Kyiv Moscow Minsk Riga Vilnius Tallinn "
    "Tirana Skopje Sarajevo Podgorica Pristina Reykjavik Valletta Nicosia Bern Luxembourg Monaco",
    "Name a state of the USA.": "Alabama Alaska Arizona Arkansas California Colorado Connecticut "
    "Delaware Florida Georgia Hawaii Idaho Illinois Indiana Iowa Kansas Kentucky Louisiana Maine "
    "Maryland Massachusetts Michigan Minnesota Mississippi Missouri Montana Nebraska Nevada Ohio "
    "Oklahoma Oregon Pennsylvania Tennessee Texas Utah Vermont Virginia Washington Wisconsin "
    "Wyoming",
    "Name a fruit.": "apple apricot avocado banana blackberry blueberry cherry coconut cranberry "
    "date fig grape grapefruit guava kiwi lemon lime lychee mango melon nectarine olive orange "
    "papaya peach pear persimmon pineapple plum pomegranate raspberry strawberry tomato watermelon "
    "apples bananas grapes oranges strawberries blueberries",
    "Name a musical instrument.": "accordion banjo bassoon cello clarinet drum drums flute guitar "
    "harmonica harp horn lute lyre mandolin oboe organ piano piccolo recorder saxophone sitar "
    "tambourine trombone trumpet tuba ukulele viola violin xylophone",
    "Name a part of the human body.": "ankle arm back belly brain cheek chest chin ear elbow eye "
    "face finger foot hair hand head heart heel hip jaw kidney knee leg lip liver lung mouth neck "
    "nose rib shoulder skin spine stomach thigh throat thumb toe tongue tooth waist wrist",
    "Name a metal.": "aluminium aluminum brass bronze chromium cobalt copper gold iron lead "
    "lithium magnesium manganese mercury nickel palladium platinum potassium silver sodium steel "
    "tin titanium tungsten uranium zinc",
    "Name a shape with straight sides.": "triangle square rectangle pentagon hexagon heptagon "
    "octagon nonagon decagon rhombus trapezoid trapezium parallelogram quadrilateral polygon kite",
}
"""Question -> its right answers, separated by spaces."""


def answers_to(question: str) -> frozenset[str]:
    """The right answers to a question of `CLOSED_LISTS`, in small letters."""
    return frozenset(CLOSED_LISTS[question].lower().split())


def right_answers(texts: Sequence[str], right: frozenset[str]) -> list[str | None]:
    """The answer that each text is, whatever its case and the marks around it; None if wrong."""
    words = (text.strip(" .,").lower() for text in texts)
    return [word if word in right else None for word in words]


def distinct_so_far(answers: Sequence[str | None]) -> list[int]:
    """How many different right answers are among the first n, for n = 1, 2, ..."""
    return [len({*answers[: n + 1]} - {None}) for n in range(len(answers))]
