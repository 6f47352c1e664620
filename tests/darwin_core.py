"""A small Darwin Core Archive, written as GBIF writes its downloads."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

DC = "http://purl.org/dc/terms/"
DWC = "http://rs.tdwg.org/dwc/terms/"
GBIF = "http://rs.gbif.org/terms/1.0/"

# GBIF writes some 220 columns; these in their order are the ones that matter here and some that lie between them.
OCCURRENCE_TERMS = (
    f"{GBIF}gbifID", f"{DC}accessRights", f"{DC}license", f"{DC}references", f"{DC}rightsHolder", f"{DC}type",
    f"{DWC}institutionCode", f"{DWC}datasetName", f"{DWC}basisOfRecord", f"{DWC}occurrenceID", f"{DWC}recordedBy",
    f"{DWC}eventDate", f"{DWC}countryCode", f"{DWC}locality", f"{DWC}decimalLatitude", f"{DWC}scientificName",
    f"{DWC}kingdom", f"{DWC}phylum", f"{DWC}class", f"{DWC}order", f"{DWC}family", f"{DWC}genus",
    f"{DWC}specificEpithet", f"{DWC}taxonRank", f"{DWC}vernacularName", f"{GBIF}species", f"{GBIF}mediaType",
)  # fmt: skip
MULTIMEDIA_TERMS = (
    f"{GBIF}gbifID", f"{DC}type", f"{DC}format", f"{DC}identifier", f"{DC}references", f"{DC}title",
    f"{DC}description", f"{DC}source", f"{DC}audience", f"{DC}created", f"{DC}creator", f"{DC}contributor",
    f"{DC}publisher", f"{DC}license", f"{DC}rightsHolder",
)  # fmt: skip


def short(term: str) -> str:
    return term.rpartition("/")[2]


def describe(
    tag: str, row_type: str, file: str, terms: Sequence[str], id_tag: str, defaults: Mapping[str, str] | None = None
) -> str:
    """One element of meta.xml, written as GBIF writes it."""
    fields = [f'    <field index="{number}" term="{term}"/>' for number, term in enumerate(terms)]
    fields += [
        f"    <field term={quoteattr(term)} default={quoteattr(text)}/>" for term, text in (defaults or {}).items()
    ]
    return "\n".join(
        [
            f'  <{tag} encoding="UTF-8" fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" fieldsEnclosedBy="" '
            f'ignoreHeaderLines="1" rowType="{row_type}">',
            f"    <files>\n      <location>{file}</location>\n    </files>",
            f'    <{id_tag} index="0"/>',
            *fields,
            f"  </{tag}>",
        ]
    )


def meta_xml(*elements: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://rs.tdwg.org/dwc/text/ http://rs.tdwg.org/dwc/text/tdwg_dwc_text.xsd">\n'
        + "\n".join(elements)
        + "\n</archive>\n"
    )


def tab_table(terms: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Rows by short term name; every field as it is, nothing quoted."""
    names = [short(term) for term in terms]
    lines = ["\t".join(names), *("\t".join(row.get(name, "") for name in names) for row in rows)]
    return "\n".join(lines) + "\n"


def gbif_files(
    occurrences: Sequence[Mapping[str, str]], media: Sequence[Mapping[str, str]], more_terms: Sequence[str] = ()
) -> dict[str, str]:
    """Every file of a GBIF download by name."""
    terms = (*OCCURRENCE_TERMS, *more_terms)
    meta = meta_xml(
        describe("core", f"{DWC}Occurrence", "occurrence.txt", terms, "id"),
        describe("extension", f"{DWC}Occurrence", "verbatim.txt", OCCURRENCE_TERMS, "coreid"),
        describe("extension", f"{GBIF}Multimedia", "multimedia.txt", MULTIMEDIA_TERMS, "coreid"),
    )
    verbatim = [{**row, "kingdom": "PLANTS as written", "license": "see label"} for row in occurrences]
    return {
        "meta.xml": meta,
        "metadata.xml": "<eml:eml xmlns:eml='eml://ecoinformatics.org/eml-2.1.1'><dataset/></eml:eml>",
        "dataset/50c9509d-22c7-4a22-a47d-8c48425ef4a7.xml": "<eml/>",
        "occurrence.txt": tab_table(terms, occurrences),
        "verbatim.txt": tab_table(OCCURRENCE_TERMS, verbatim),
        "multimedia.txt": tab_table(MULTIMEDIA_TERMS, media),
        "rights.txt": "dataset: http://creativecommons.org/licenses/by-nc/4.0/legalcode\n",
        "citations.txt": "When using this dataset please use the following citation: ...\n",
    }


def write_zip(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
