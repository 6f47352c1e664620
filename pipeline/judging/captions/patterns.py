"""The patterns of the measures that look at wording, in RE2 syntax (Arrow searches them over whole columns).

Each pattern was tried on real captions; README.md gives the error rates.
"""

from __future__ import annotations

from pathlib import Path

_IMAGE_SUFFIX = r"\.(?i:jpe?g|png|gif|webp|tiff?|bmp|svg|heic|cr2|nef|psd|xcf)"

FILENAME = "|".join(
    (
        # a camera's or a program's own name and a number: IMG_1234, DSC00012, P1020304, Screenshot 2020-01-01
        r"^(?i:img|image|dsc|dscf|dscn|dscn?_|pict|pic|dcim|cimg|mvi|sam|gopr|pxl|wp|imag|scan|file|foto|photo"
        r"|picture|hpim|kif|"
        r"mg|stp|ssa|ph|pc|bild|untitled|unbenannt|screenshot|screen shot|snapshot|clip ?image|slide|figure|fig)"
        r"[-_ ]*\(?\d[\d\-_. ()a-zA-Z]{0,4}[\d\-_. ()]*\)?(?:" + _IMAGE_SUFFIX + r")?$",
        r"^[A-Z]{1,2}\d{5,}$",
        r"^\S+" + _IMAGE_SUFFIX + r"$",  # one word with an image suffix
        r"^(?i:[0-9a-f]{12,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:" + _IMAGE_SUFFIX + r")?$",
        r"^[\d\-_. ]*\d[\d\-_. ]*" + _IMAGE_SUFFIX + r"$",
        # 20140115_123456, 2014-01-15 12.30; "144", "2004-2005" and "1000000" lack letters, but name no file
        r"^(?:\d+[\-_. ])*\d{4,}[1-9]\d*(?:[\-_. ]\d+)*$",
        r"^\d{4}-\d{2}-\d{2}(?:[\-_. ]\d+)*$",
    )
)

# Searched in lower-case texts. Words that name an icon or a link ("home", "download", "error") caption an icon.
PLACEHOLDER = "|".join(
    (
        r"^[\[({]*(?:no|not?|missing|image|photo|picture|thumbnail|preview|sorry,? no)?[ _-]*(?:image|photo"
        r"|picture|preview|thumbnail|icon|description|caption|title|name)s?[ _-]*(?:is |are )?(?:currently |yet )?"
        r"(?:not (?:yet )?(?:available|found|provided)|unavailable|available|missing|coming soon|placeholder"
        r"|to follow|goes here|here|removed|deleted)?[\])}.!]*$",
        r"^[\[({]*(?:(?:no|missing|image|insert) alt|(?:(?:no|missing|image|insert) )?alt(?:ernative)?[ -]?text)"
        r"(?: (?:available|provided|missing|here))?[\])}.!]*$",
        r"^[\[({<]*(?:placeholder|untitled|no title|sans titre|ohne titel|unbenannt|sin título|unknown|unnamed"
        r"|not available|coming soon|default|test|loading|404(?: not found)?|not found|view (?:full size|larger|image)"
        r"|click (?:here|to (?:enlarge|view|zoom)))[\])}>.!…]*(?: \d+)?$",
        # what programs write where there is nothing; not "Null." with a full stop, a German zero
        r"^[\[({<]*(?:undefined|null|none|n/a|todo|tbd|xxxx+|asdf\w*)[\])}>]*$",
        r"^this work is (?:hereby )?(?:released|dedicated) .{0,12}public domain",
        r"^(?:image |photo |picture )?placeholder(?: image| photo| picture)?\.?$",
        r"^(?:hash|array|code|scalar|glob)\(0x[0-9a-f]+\)$",
        r"^\[object \w+\]$",
        r"^(?:\{\{.*\}\}|%\w+%|\$\{?\w+\}?|<\?.*\?>)$",
        r"^(?:image|photo|picture|slide|page|figure) \d+(?: of \d+)?$",
        r"^lorem ipsum(?: dolor\b|\W*$)",
        r"^(?:this )?(?:image|photo|picture) (?:is )?(?:no longer available|could not be (?:loaded|found)"
        r"|does not exist|has been removed)",
    )
)

# What a shop says to its visitors and a caption does not say of a picture. "Free shipping", "add to basket" and "20%
# off" are not in it: icons and photos of signs show them.
SPAM = "(?i)" + "|".join(
    (
        r"\b(?:click|tap|press) (?:here|now|below|the link) (?:to|for|and) (?:buy|order|shop|subscribe|win|save|claim"
        r"|get|download|register)\b",
        r"\b(?:buy|order|shop|act|call us|subscribe|sign up|register|enrol) (?:it |yours? |online )?(?:now|today)\b"
        r"\W*!",
        r"\b(?:limited[- ]time offer|while (?:stocks?|supplies) lasts?|money[- ]back guarantee|best prices? guaranteed"
        r"|use (?:promo|coupon|discount) code|don'?t miss (?:this|our) (?:offer|deal|sale)|100% satisfaction)\b",
        r"\bsave (?:up to )?\d+ ?%(?:$|\W)|\bup to \d+ ?% off\b",
        r"[$€£]{3,}",  # "$$" is a mark of LaTeX
    )
)


def _words(file: str, mark: str) -> str:
    """Return the words of a list beside this module that bear a mark, as alternatives."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return "|".join(word for word, *marks in rows if mark in marks)


def _genus(mark: str) -> str:
    return rf"[A-Z][a-zë]+(?:{_words('genus_endings.txt', mark)})"


def _epithet(mark: str) -> str:
    return rf"(?:[×x] ?)?[a-zë]*(?:-[a-z]+)*(?:{_words('epithet_endings.txt', mark)})"


_SURE_GENUS = _genus("sure")
_ANY_EPITHET = rf"(?:[×x] ?)?(?:[a-zë]+-)*[a-zë]{{3,}}(?:{_words('epithet_endings.txt', 'any')})"
BINOMIAL = rf"(?:^|[^\pL])(?:{_genus('name')} {_epithet('name')}|{_SURE_GENUS} {_ANY_EPITHET})(?:[^\pL]|$)"
# with Roman numerals
NOT_AN_EPITHET = rf"(?:^|[^\pL])[A-Z][a-z]+ (?:{_words('not_latin.txt', 'second')}|[ivxlcdm]+)(?:[^\pL]|$)"
NOT_A_GENUS = rf"^(?:{_words('not_latin.txt', 'first')})\b"

# A whole capitalised word is an author only beside a year or a connecting word; elsewhere it may be the common name
# ("Chelmon rostratus Kupferstreifen").
_AUTHOR = (
    r"(?: (?:\([A-Z][^()]{0,40}\)|[A-Z][\pL]{0,12}\.|L|Linnaeus|(?:ex|et|&) [A-Z][\pL]+\.?|[A-Z][\pL]+,? \d{4}"
    r"|[A-Z][\pL]+(?: & [A-Z][\pL]+)+))"
)
# Stricter than BINOMIAL, because a rule drops bare names. Any epithet counts only before L., a year or an author in
# brackets. No full stop follows a name of two words.
_INFRASPECIFIC = r"(?: (?:subsp|ssp|var|f)\. [a-zë-]+)?"
BARE_NAME = (
    rf"^{_genus('bare')} (?:{_epithet('bare')}|× ?[a-zë-]{{3,}}){_INFRASPECIFIC}{_AUTHOR}*$"
    rf"|^{_genus('surest')} {_epithet('bare-behind-sure')}{_INFRASPECIFIC}{_AUTHOR}*$"
    rf"|^{_SURE_GENUS} {_ANY_EPITHET}{_INFRASPECIFIC} "
    rf"(?:L\.?|\([A-Z][^()]{{0,40}}\)|[A-Z][\pL]+, \d{{4}}){_AUTHOR}*$"
    r"|^[A-Z][a-zë]+ (?:sp|spp)\.?$|^[A-Z][a-z]+(?:aceae|idae|opsida)$"
)
# Scripts written without spaces between words: Han, kana, Thai, Lao, Khmer, Burmese, Tibetan.
DENSE_SCRIPT = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"

# Scripts in which one character can be a whole word.
CHARACTER_WORDS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"

# A list of key words has no grammar that would show its language ("card, diamond, game, suit" was French at 0.7) ...
KEYWORD_LIST = r"^[^,;\s]+(?: [^,;\s]+)?(?:[,;] ?[^,;\s]+(?: [^,;\s]+)?){2,}$"
# ... and a proper name has the language of its place ("Castillo de San Marcos", "France - Comte de Nice").
PROPER_NAME = (
    r"^\p{Lu}[\pL\pM'’.-]*,?(?: (?:\p{Lu}[\pL\pM'’.]*(?:-[\pL'’]+)*|[-–&,]|[dl]['’]\p{Lu}[\pL'’-]*"
    r"|(?:de|la|le|les|du|des|del|della|di|da|do|dos|das|van|von|der|den|el|al|y|e|et|sur|en|pas|zu|am|im))){0,7} "
    r"(?:[dl]['’])?\p{Lu}[\pL\pM'’.-]*$"
)

# Words of English captions that other languages hardly use: they save captions with foreign names ("The Harvest").
ENGLISH_WORDS = (
    r"(?i)(?:^|[^\pL])(?:the|with|and|from|(?:portrait|castle|view|house|church|map|flag|photo|painting|kind"
    r"|type) of|flag|icon|icons|green|white|black|yellow|woman|boy|girl|house|tree|flower|bird|dog|horse|street"
    r"|weather|shape|button|smoking)(?:[^\pL]|$)"
)
