"""Formats of JSON Schema as regular expressions, for those that the grammar engine does not know or
takes too lightly.

A pattern here matches texts of its format alone. Some match fewer than the standard allows:
international names stop at the commonest scripts, hosts in URIs are names or IPv4 addresses, and
no minute has a 61st second.
"""

ENGINE_FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-]{_CLOCK})"

_HEX = "%[0-9A-Fa-f]{2}"
# RFC 3987: characters of other scripts that may stand in an IRI
_WIDE = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U0001fffd\U00020000-\U0002fffd"


def _uri(more: str, relative: bool) -> str:
    """RFC 3986, with `more` characters: absolute, or relative as well."""
    safe = rf"A-Za-z0-9._~!$&'()*+,;={more}\-"
    byte = f"(?:[{safe}:@]|{_HEX})"  # pchar
    segment, nonempty = f"{byte}*", f"{byte}+"
    first = f"(?:[{safe}@]|{_HEX})+"  # of a relative path: without a colon
    rest = f"(?:/{segment})*"
    authority = f"(?:(?:[{safe}:]|{_HEX})*@)?(?:[{safe}]|{_HEX})*(?::[0-9]*)?"
    below = f"//{authority}{rest}|/(?:{nonempty}{rest})?"
    tail = rf"(?:\?(?:[{safe}:@/?]|{_HEX})*)?(?:#(?:[{safe}:@/?]|{_HEX})*)?"
    absolute = rf"[A-Za-z][A-Za-z0-9+.\-]*:(?:{below}|{nonempty}{rest}|){tail}"
    return f"(?:{absolute}|(?:{below}|{first}{rest}|){tail})" if relative else absolute


_POINTER = "(?:/(?:[^/~]|~[01])*)*"
_NAME = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*"
_VARIABLE = rf"{_NAME}(?::[1-9][0-9]{{0,3}}|\*)?"
# small letters of Latin, Greek and Cyrillic; kana, Han, Hangul
_LETTERS = "a-zà-öø-ÿα-ωа-яぁ-ゖァ-ヺ一-鿿가-힣"
_LABEL = rf"[{_LETTERS}0-9](?:[{_LETTERS}0-9]|-[{_LETTERS}0-9]){{0,30}}"
_ATOM = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_LETTERS}\-]+"

PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "uri-reference": _uri("", relative=True),
    "iri": _uri(_WIDE, relative=False),
    "iri-reference": _uri(_WIDE, relative=True),
    "uri-template": (
        rf"(?:[^\x00-\x20\x7f\"'%<>\\^`{{|}}]|{_HEX}"
        rf"|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
    ),
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
    "idn-hostname": rf"{_LABEL}(?:\.{_LABEL})*",
    "idn-email": rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*",
}
