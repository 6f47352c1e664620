"""The patterns of the measures that look at wording, in RE2 syntax (Arrow searches them over whole columns).

Each pattern was tried on real captions; README.md gives the error rates.
"""

from __future__ import annotations

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

_GENUS = r"[A-Z][a-zë]+(?:a|us|um|is|es|on|os|ys|ix|ax|ops|ex|ium|ia|e|er|as|yx|ma|anthus|dendron)"
_EPITHET_ENDS = (
    r"(?:ensis|ense|bur|ita|itum|itus|ana|anum|anus|oides|ifolia|ifolium|ifolius|folia|folium|florum|florus"
    r"|flora|orum|arum|iana|ianum|ianus"
    r"|icum|icus|osum|osus|atum|"
    r"atus|inum|inus|ii|ulus|ulum|eum|eus|ifera|iferum|ifer|alis|aris|ilis|cola|gera|ctus|ctum|phylla|phyllum"
    r"|phyllus|carpa|carpum|"
    r"rrhiza|vera|viride|viridis|ntha|nthum|nthus|urus|urum|erus|erum|idus|idum|ida|ida|ptera|ceps|pens|cens"
    r"|scens|gens|tans|"
    r"rans|vulgare|vulgaris|perennis|annua|annuum|alba|album|albus|nigra|nigrum|niger|rubra|rubrum|sativa"
    r"|sativum|sativus|tectorum|"
    r"officinale|mays|nobilis|avium|cepa|communis|persica|carota|maxima|arvense|arvensis|repens|pratense|sylvestris|"
    r"domestica|europaea|americana|japonica|chinensis|sinensis|indica|africana|australis|orientale|occidentalis"
    r"|vinifera)"
)
_EPITHET = r"(?:[×x] ?)?[a-zë]*(?:-[a-z]+)*" + _EPITHET_ENDS
# Behind a genus whose ending few English words have, any Latin ending counts.
_SURE_GENUS = (
    r"[A-Z][a-zë]+(?:us|um|is|ea|ula|ella|aria|ago|ys|ops|ax|ix|odon|ica|osa|ola|ita|ilia|anita|etes|onia|inia|ccinia"
    r"|xia|ixia|uja|omium|yra|chys)"
)
_ANY_EPITHET = (
    r"(?:[×x] ?)?(?:[a-zë]+-)*[a-zë]{3,}"
    r"(?:us|um|is|ta|na|ra|la|da|sa|ca|ia|ea|ae|ns|ii|oba|or|ax|ex|ix|ile|ale|yne|jah)"
)

BINOMIAL = rf"(?:^|[^\pL])(?:{_GENUS} {_EPITHET}|{_SURE_GENUS} {_ANY_EPITHET})(?:[^\pL]|$)"
# English words with a Latin ending behind a capital ("Paris opera", "Discussion forum"), and Roman numerals.
NOT_AN_EPITHET = (
    r"(?:^|[^\pL])[A-Z][a-z]+ (?:opera|camera|panda|koala|gorilla|banana|umbrella|extra|arena|agenda|media"
    r"|formula|salsa|"
    r"fiesta|pasta|panorama|drama|magenta|vanilla|album|museum|aquarium|stadium|premium|medium|campus|circus|cactus|"
    r"status|virus|bonus|focus|minus|versus|tennis|basis|oasis|crisis|color|motor|mirror|doctor|tractor|door|floor|"
    r"actor|sailor|harbor|interior|senior|junior|major|minor|editor|visitor|index|complex|relax|apex|cola|idea"
    r"|area|aluminum|apparatus|aquifer|athenaeum|biceps|calculus|coliseum|cumulus|curriculum|datum|decorum|detritus"
    r"|emeritus|flora|forceps|forum|hiatus|lanthanum|laudanum|linoleum|lyceum|mausoleum|means|modulus|nucleus|pendulum"
    r"|petroleum|platinum|prospectus|quadriceps|quorum|serum|sinus|speculum|stimulus|stratum|substratum|terminus"
    r"|thesaurus|triceps|tumulus|ultimatum|umbilicus|[ivxlcdm]+)(?:[^\pL]|$)"
)

# A whole capitalised word is an author only beside a year or a connecting word; elsewhere it may be the common name
# ("Chelmon rostratus Kupferstreifen").
_AUTHOR = (
    r"(?: (?:\([A-Z][^()]{0,40}\)|[A-Z][\pL]{0,12}\.|L|Linnaeus|(?:ex|et|&) [A-Z][\pL]+\.?|[A-Z][\pL]+,? \d{4}"
    r"|[A-Z][\pL]+(?: & [A-Z][\pL]+)+))"
)
# Stricter than BINOMIAL, because a rule drops bare names. Romance, Basque and Esperanto adjectives share some endings
# ("Africa orientale", "Lira italiana", "Linia aeriana Tux."): those count only behind a genus with a sure ending. Any
# other epithet counts only before L., a year or an author in brackets. No full stop follows a name of two words.
_SURE_EPITHET = (
    r"(?:[×x] ?)?[a-zë]*(?:-[a-z]+)*(?:ensis|bur|itum|itus|anum|anus|oides|ifolia|ifolium|ifolius|folium|florum|florus"
    r"|flora|orum|arum|icum|icus|osum|osus|atum|atus|inum|inus|ii|ulus|ulum|eum|eus|ifera|iferum|ifer|alis|aris|ilis"
    r"|ctus|ctum|phylla|phyllum|phyllus|carpa|carpum|carpus|rrhiza|viridis|ntha|nthum|nthus|urus|urum|erum|idus|idum"
    r"|ptera|pterum|pterus|ceps|vulgare|vulgaris|perennis|annuum|album|albus|nigrum|rubrum|sativum|sativus|tectorum"
    r"|virginiana|caroliniana|canadensis)"
)
_ROMANCE_EPITHET = (
    r"(?:[×x] ?)?[a-zë]*(?:-[a-z]+)*(?:ense|ita|ana|osa|ata|ina|ica|are|ida|ula|gera|cola|ens|ans|alba|nigra|niger"
    r"|rubra|sativa|annua|vera|persica|carota|maxima|nobilis|avium|cepa|mays|domestica|europaea|vinifera)"
)
# Without -as and -os, the plurals of Romance and genitives of Lithuanian words.
_BARE_GENUS = r"[A-Z][a-zë]+(?:a|us|um|is|es|on|ys|ix|ax|ops|ex|e|er|yx|anthus|dendron)"
_SUREST_GENUS = r"[A-Z][a-zë]+(?:us|um|ys|ops|ax|ix|yx|ex|odon|opsis|anthes|aceros|daphne|dendron|phora|phyllum|carpus)"
_INFRASPECIFIC = r"(?: (?:subsp|ssp|var|f)\. [a-zë-]+)?"
BARE_NAME = (
    rf"^{_BARE_GENUS} (?:{_SURE_EPITHET}|× ?[a-zë-]{{3,}}){_INFRASPECIFIC}{_AUTHOR}*$"
    rf"|^{_SUREST_GENUS} {_ROMANCE_EPITHET}{_INFRASPECIFIC}{_AUTHOR}*$"
    rf"|^{_SURE_GENUS} {_ANY_EPITHET}{_INFRASPECIFIC} "
    rf"(?:L\.?|\([A-Z][^()]{{0,40}}\)|[A-Z][\pL]+, \d{{4}}){_AUTHOR}*$"
    r"|^[A-Z][a-zë]+ (?:sp|spp)\.?$|^[A-Z][a-z]+(?:aceae|idae|opsida)$"
)
# Articles, and names of countries and other common words that end like a genus ("Russia rubolii", "Area occidentale").
NOT_A_GENUS = (
    r"^(?:Una|Uma|Unha|Dois|Tres|Los|Las|Les|Des|Albania|Algeria|Angola|Arabia|Argentina|Armenia|Aruba|Australia|Austria"
    r"|Belarus|Bolivia|Bosnia|Botswana|Bulgaria|Cambodia|Colombia|Croatia|Cyprus|Estonia|Ethiopia|Gambia|Georgia|Ghana"
    r"|Guatemala|Guinea|India|Indonesia|Italia|Jamaica|Kenya|Latvia|Liberia|Libia|Libya|Lithuania|Macedonia|Madagaska"
    r"|Madagascar|Makedonia|Malaysia|Mauritania|Mauritius|Moldova|Mongolia|Namibia|Nigeria|Romania|Russia|Rwanda|Samoa"
    r"|Serbia|Slovakia|Slovenia|Somalia|Syria|Tanzania|Tunisia|Uganda|Venezuela|Zambia|Africa|America|Asia|Europa|Oceania"
    r"|Area|Libra|Lira|Regio|Sussex)\b"
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
