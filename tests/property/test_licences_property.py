"""No word beside a known licence makes it freer: what forbids is heard, and prose is not read."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline.judging.vocabulary.licences import ALL_RIGHTS_RESERVED, KNOWN, LicenceSettings, normalise_licence

TEXTS = Path(__file__).parents[1] / "unit/pipeline/judging/vocabulary/licence_texts.csv"
FREE = LicenceSettings(allow=(KNOWN,), deny=(
    ALL_RIGHTS_RESERVED, "CC-BY-NC", "CC-BY-NC-SA", "CC-BY-ND", "CC-BY-NC-ND",
))  # fmt: skip
"""What everyone may change and sell."""
with TEXTS.open(encoding="utf-8", newline="") as stream:
    FORMS = sorted({row["text"] for row in csv.DictReader(stream) if FREE.allows(row["id"])})
FORBIDDING = re.findall(
    r"\S+",
    """
    no not never none only except without unless but restricted prohibited forbidden non-commercial noncommercial
    commercial reserved rights metadata text data personal private permission required reuse
    nicht kein keine nur ohne außer ausgenommen verboten untersagt privat kommerziell vorbehalten Metadaten Daten Rechte
    pas sans sauf seulement uniquement interdit interdite aucun réservés métadonnées données texte privé droits
    no sin solo sólo salvo prohibido reservados metadatos datos texto privado derechos comercial
    não sem somente apenas exceto proibido reservados metadados dados privado direitos
    non senza solo soltanto tranne vietato riservati metadati dati testo privato diritti commerciale
    niet geen alleen behalve zonder verboden voorbehouden gegevens tekst rechten
""",
)
WORDS = st.one_of(*(st.sampled_from([f(word) for word in FORBIDDING]) for f in (str, str.upper, str.capitalize)))
PROSE = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=5, max_size=9), min_size=1, max_size=4).map(" ".join)


@given(
    st.sampled_from(FORMS),
    WORDS,
    st.sampled_from([" {} ", ", {}, ", " ({}) ", " / {} / ", "; {}; ", ". {}. "]),
    st.data(),
)
@settings(max_examples=1500, deadline=None)
def test_a_forbidding_word_anywhere_never_leaves_a_licence_free(
    form: str, word: str, place: str, data: st.DataObject
) -> None:
    gaps = [0, len(form), *(found.start() for found in re.finditer(r"[ ,;()/]", form) if "//" not in form)]
    at = data.draw(st.sampled_from(gaps))
    text = f"{form[:at]}{place.format(word)}{form[at:]}".strip(" ,;./")
    licence = normalise_licence(text)
    # of a choice the word restricts the alternative that it stands in, first or last, and the other one stays free
    is_heard = " OR " in licence and not all(FREE.allows(each) for each in licence.split(" OR "))
    assert not FREE.allows(licence) or is_heard, text


@given(
    st.sampled_from(FORMS),
    PROSE,
    st.sampled_from(["{1} {0}", "{0} {1}", "{0}, {1}", "{0} ({1})", "{1}: {0}", "{0}. {1}", "{1}, {0}"]),
)
@settings(max_examples=800, deadline=None)
@example("CC BY 4.0", "images", "{1}: {0}")
def test_prose_before_or_after_a_known_form_is_not_read(form: str, prose: str, shape: str) -> None:
    assume(normalise_licence(f"CC BY {prose}") == "unknown")  # else a word of licences
    text = shape.format(form, prose)
    assert not FREE.allows(normalise_licence(text)), text


@given(
    st.lists(
        st.sampled_from([*FORMS, "permission required", "CC BY-NC 4.0", "All rights reserved", ""]),
        min_size=2,
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_rows_together_are_never_freer_than_each_of_them(rows: list[str]) -> None:
    if FREE.allows(normalise_licence("\n".join(rows))):
        assert all(FREE.allows(normalise_licence(row)) for row in rows if row), rows
