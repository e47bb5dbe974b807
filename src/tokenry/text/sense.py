"""Words without which a text says something else: what a shortened text must not lose.

    negations    not, never, without, fails to, -n't
    numbers      42, 3.5 %, seven, twice
    units        what stands behind a number: mg, km/h, million, weeks
    names        capitalised words but those that only begin a sentence, acronyms, addresses
    conditions   if, unless, except, until
    degrees      all, some, at most, almost, more, than
    modals       may, must, should, probably

Leaving out "not" turns a finding into its opposite, and no score of importance knows that: it is a
short and likely word. The lists are of English, with the negations of some other languages; what
they miss is for a pattern of one's own. A word at a sentence's beginning counts as a name unless it
is a common small word or stands in the text in small letters too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from tokenry.text.compression import Span, sentences, touched

Kind = Literal["negations", "numbers", "units", "names", "conditions", "degrees", "modals"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KEPT: tuple[Kind, ...] = ("negations", "numbers", "units", "names")


def _words(*alternatives: str) -> str:
    return rf"\b(?:{'|'.join(' '.join(alternatives).split())})\b"


NEGATIONS = re.compile(
    _words(
        "no not none nobody nothing nowhere never neither nor cannot without hardly scarcely",
        "barely rarely seldom unable lacks? lacked lacking fail(?:s|ed|ing|ures?)? refus(?:e|es"
        "|ed|ing)",
        "den(?:y|ies|ied|ying) prevent(?:s|ed|ing)? avoid(?:s|ed|ing)? absent absence",
        "false",
        "exclud(?:e|es|ed|ing) forbid(?:s|den)? prohibit(?:s|ed)? non \\w+n['’]t",
        # German, French, Spanish, Portuguese, Italian, Dutch, Russian
        "nicht nichts nie niemals niemand kein(?:e[mnrs]?)? ohne weder pas jamais sans aucune?",
        "rien",
        "ni nunca jamás sin ningun[oa]? ningún nada tampoco não sem nem mai senza né",
        "nessun[oa]?",
        "niet geen nooit zonder не нет ни без никогда",
    )
    + "|[不没沒無无非未勿]|ない|なかった|ません|않|못|없",
    re.I,
)
_NUMBER_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve \\w+teen half third",
    "(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\\w+)? hundreds? thousands? millions?",
    "billions? trillions? dozens? quarters? once twice thrice double[sd]? triple[sd]?",
    "halve[sd]? first second",
)
NUMBERS = re.compile(rf"\S*\d\S*|[%‰$€£¥½¼¾]|{_NUMBER_WORDS}", re.I)
_UNIT = (
    "%|‰|per ?cent|percent(?:age)?|points?|°[CF]?|degrees?|celsius|fahrenheit|kelvin|k?g"
    "|mg|[µμ]g|mcg|grams?|kilos?|tons?|tonnes?|lbs?|pounds?|oz|ounces?|[kcmnµμ]?m|miles?"
    "|mi|feet|foot|ft|inch(?:es)?|yards?|acres?|hectares?|ha|[mcd]?l|lit(?:er|re)s?"
    "|gallons?|[mn]?s|secs?|seconds?|mins?|minutes?|h|hrs?|hours?|days?|weeks?|months?"
    "|years?|decades?|centuries|century|times|-?fold|[kmg]?hz|[km]?w|[km]?wh|watts?|[mk]?v"
    "|volts?|m?a|amps?|k?j|k?cal|calories|k?pa|bar|psi|m?mol|ppm|ppb|db|[kmgt]?i?b|bits?"
    "|bytes?|px|pixels?|dollars?|euros?|pounds?|cents?|yen|usd|eur|gbp|hundred|thousand"
    "|million|billion|trillion|dozen|[ap]\\.?m\\.?|bc|ad|bce|ce"
)
UNITS = re.compile(rf"(?:{_UNIT})(?:/(?:{_UNIT}))*[²³]?", re.I)
OTHERS: dict[Kind, re.Pattern[str]] = {
    "conditions": re.compile(
        _words(
            "if unless except only but however although though until till before after otherwise",
            "instead provided whether rather versus vs",
        ),
        re.I,
    ),
    "degrees": re.compile(
        _words(
            "all any each every both some few fewer many most more less least almost nearly about",
            "approximately roughly over under above below than exceed(?:s|ed)? up down too enough",
            "always often sometimes usually",
        ),
        re.I,
    ),
    "modals": re.compile(
        _words(
            "may might can could should must shall would ought likely unlikely possibl[ey] perhaps",
            "probabl[ey] alleged(?:ly)? reportedly apparently",
        ),
        re.I,
    ),
}
ADDRESSES = re.compile(r"\S+@\S+|\w+://\S+|(?<!\w)[@#]\w+")
SMALL = frozenset(
    [
        "a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "she", "they",
        "we", "you", "i", "his", "her", "their", "our", "your", "my", "in", "on", "at", "by",
        "for", "from", "to", "of", "with", "as", "is", "are", "was", "were", "be", "been", "do",
        "does", "did", "has", "have", "had", "there", "here", "when", "where", "what", "which",
        "who", "whom", "whose", "why", "how", "and", "or", "so", "then", "thus", "also", "yet",
        "while", "since", "because", "during", "most", "many", "some", "all", "each", "every",
        "such", "other", "another", "both", "one", "two", "three", "first", "if", "but", "not",
        "no", "now", "after", "before", "until", "through", "over", "under", "between", "about",
        "let", "please", "note", "see", "use", "make",
    ]
)  # fmt: skip


def senses(text: str, spans: Sequence[Span]) -> list[Kind | None]:
    """The kind of each word `spans` of a text; None for those of none.

    A word of several kinds has the first of them in the order of `KINDS`.
    """
    found: list[Kind | None] = [None] * len(spans)
    negated, counted = _touching(text, spans, NEGATIONS), _touching(text, spans, NUMBERS)
    measured = {
        place + 1
        for place in counted
        if place + 1 < len(spans) and UNITS.fullmatch(_bare(text, spans[place + 1]))
    }
    named = _touching(text, spans, ADDRESSES) | _names(text, spans)
    by_kind: dict[Kind, set[int]] = {
        "negations": negated, "numbers": counted, "units": measured, "names": named,
        **{kind: _touching(text, spans, pattern) for kind, pattern in OTHERS.items()},
    }  # fmt: skip
    for kind in reversed(KINDS):
        for place in by_kind[kind]:
            found[place] = kind
    return found


def _touching(text: str, spans: Sequence[Span], pattern: re.Pattern[str]) -> set[int]:
    return {word for match in pattern.finditer(text) for word in touched(spans, match.span())}


def _bare(text: str, span: Span) -> str:
    """A word without the marks around it."""
    return text[slice(*span)].strip(".,;:!?()[]{}\"'“”‘’")


def _names(text: str, spans: Sequence[Span]) -> set[int]:
    """Words with capitals, but those that have them for their place alone."""
    bare = [_bare(text, span) for span in spans]
    small = {word for word in bare if word.islower()} | SMALL
    names = set()
    for sentence in sentences(text):
        inside = [word for word in touched(spans, sentence) if bare[word]]
        loud = sum(bare[word].isupper() for word in inside)
        if 2 * loud > len(inside) > 3:
            continue  # all in capitals: they say nothing
        for rank, place in enumerate(inside):
            word = bare[place]
            stem = re.sub("['’](?:s|m|ve|ll|d)$", "", word)
            inner = any(letter.isupper() for letter in word[1:])
            begins = word[0].isupper() and stem != "I"
            if inner or (begins and (rank or stem.lower() not in small)):
                names.add(place)
    return names
