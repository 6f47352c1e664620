"""Fields of other tables for the rows of any source, and rows that a `where` leaves out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darwin_core import gbif_files, write_zip
from foreign_tars import picture, write_tar

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from pipeline.judging.vocabulary.licences import normalise_licence
from pipeline.sources.reading import digest_inputs, read_rows
from pipeline.sources.rows import BATCH_ROWS
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.keyed import describe_join, fault_of
from pipeline.store.sql import open_scratch

Read = Callable[[SourceSettings], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]


def source(**keys: Any) -> SourceSettings:
    return parse_settings({"name": "ours", "domain": "plant", **keys}, SourceSettings, "config")


def list_of(path: Path, rows: str, **keys: Any) -> SourceSettings:
    """A table of addresses: the lines of a csv."""
    path.write_text(rows)
    columns = {"url": "url", "caption": "text", "record_key": "id", **keys.pop("columns", {})}
    return source(table=str(path), columns=columns, **keys)


def joined(path: Path, rows: str, on: Any = None, **columns: Any) -> dict[str, Any]:
    path.write_text(rows)
    return {"table": str(path), "on": on or {"record_key": "key"}, "columns": columns}


def counts_of(given: SourceSettings, folder: Path) -> list[dict[str, Any]]:
    counts: list[dict[str, Any]] = []
    for _ in read_rows(given, partial(open_scratch, str(folder), 0.5), tell=counts.append):
        pass
    return counts


def test_defaults_do_not_stand_in_for_rights_that_rows_state_in_several_ways(tmp_path: Path, read: Read) -> None:
    """A picture under CC BY and under "All rights reserved" went out under the licence of `defaults`."""
    rights = joined(
        tmp_path / "a.csv", "key,name,owner,genus\n1,CC BY 4.0,Ann,Rosa\n1,CC BY-NC 4.0,Bo,Malus\n2,CC0,Ann,Rosa\n"
        "1,cc-by-4.0,Ann,Rosa\n3,All rights reserved,,\n3,CC0,Bo,\n4,CC BY,,\n4,cc-by,,\n",
        licence="name", rights_holder="owner", taxon_genus="genus",
    )  # fmt: skip
    listed = "".join(f"{n},http://a.org/{n}.jpg,a rose in a garden\n" for n in range(1, 6))
    defaults = {"licence": "CC-BY-4.0", "rights_holder": "Herbarium"}
    rows, _ = read(list_of(tmp_path / "l.csv", "id,url,text\n" + listed, join=[rights], defaults=defaults))
    assert [(normalise_licence(row["licence"]), row["rights_holder"], row.get("taxon_genus")) for row in rows] == [
        ("CC-BY-4.0 AND CC-BY-NC-4.0", "Ann; Bo", None),
        ("CC0-1.0", "Ann", "Rosa"),
        ("CC0-1.0 AND all-rights-reserved", "Bo", None),
        ("CC-BY", "Herbarium", None),
        ("CC-BY-4.0", "Herbarium", None),
    ]


@pytest.mark.parametrize(
    ("rights", "licence"),
    [
        ("1,CC-BY,\n1,permission required,\n", "unknown"),
        ("1,CC-BY,\n1,private,\n", "unknown"),
        ("1,CC-BY,\n1,In Copyright,\n", "CC-BY AND all-rights-reserved"),
        ("1,CC-BY,\n1,© 2020 J. Smith,\n", "CC-BY AND all-rights-reserved"),
        ("1,CC-BY,\n1,© 2020 J. Smith,https://creativecommons.org/licenses/by-nc/4.0/\n", "CC-BY AND CC-BY-NC-4.0"),
        ("1,CC-BY,\n1,,https://creativecommons.org/licenses/by/4.0/\n", "CC-BY-4.0"),
        ("1,CC-BY,https://creativecommons.org/licenses/by/4.0/\n1,CC-BY,https://a.org/terms\n", "conflicting"),
        ('1,"CC-BY\nfor texts",\n1,CC-BY,\n', "unknown"),
        ("1,CC-BY,\n1,n/a,\n1,,\n", "CC-BY"),
    ],
)
def test_licences_of_rows_are_read_apart_and_beside_their_own_address(
    tmp_path: Path, read: Read, rights: str, licence: str
) -> None:
    """`CC-BY` beside a row that nobody can read went out as CC-BY: the texts were glued together and then read."""
    table = joined(tmp_path / "a.csv", "key,name,url\n" + rights, licence="name", licence_url="url")
    given = list_of(tmp_path / "l.csv", "id,url,text\n1,http://a.org/1.jpg,a rose\n", join=[table])
    ((row,), _) = read(given)
    assert normalise_licence(row.get("licence"), row.get("licence_url")) == licence


def test_a_default_licence_fills_the_name_and_the_address_or_nothing(tmp_path: Path, read: Read) -> None:
    """`defaults: {licence: CC0-1.0}` stood beside a row's own address, which it contradicts."""
    by = "https://creativecommons.org/licenses/by/4.0/"
    rows = f"id,url,text,name,link\n1,http://a/1,x,,{by}\n2,http://a/2,x,CC BY, \n3,http://a/3,x,,\n"
    columns = {"licence": "name", "licence_url": "link"}
    for defaults in ({"licence": "CC0-1.0"}, {"licence_url": "https://creativecommons.org/publicdomain/zero/1.0/"}):
        for where in ({}, {"licence": ["CC-BY", "CC0-1.0"]}):
            given = list_of(tmp_path / "l.csv", rows, columns=columns, defaults=defaults, where=where)
            found, lost = read(given)
            ids = [normalise_licence(row.get("licence"), row.get("licence_url")) for row in found]
            assert (ids, lost) == (["CC-BY-4.0", "CC-BY", "CC0-1.0"], [])


def test_where_reads_licences_as_ingest_does(tmp_path: Path, read: Read) -> None:
    """`not` kept what an address or one of two licences forbids, and dropped a choice."""
    nc = "https://creativecommons.org/licenses/by-nc/4.0/"
    rows = ["id,url,text,name,link", "1,http://a/1,x,CC BY AND CC BY-NC,", f"2,http://a/2,x,,{nc}",
            "3,http://a/3,x,CC-BY OR CC-BY-NC,", "4,http://a/4,x,CC BY,", "5,http://a/5,x,Free with credit,",
            f"6,http://a/6,x,CC BY,{nc}"]  # fmt: skip

    def kept(values: Any, **keys: Any) -> list[str]:
        columns = {"licence": "name", "licence_url": "link"}
        where = {"licence": values}
        found, lost = read(list_of(tmp_path / "l.csv", "\n".join(rows) + "\n", columns=columns, where=where, **keys))
        assert {reason for _, reason, _, _ in lost} <= {"where_licence"}
        return [row["record_key"] for row in found]

    assert kept({"not": ["CC-BY-NC"]}) == ["3", "4", "5", "6"]
    assert kept({"not": ["CC-BY-NC", "conflicting", "unknown"]}) == ["3", "4"]
    assert kept(["CC-BY"]) == ["3", "4"]
    assert kept(["CC-BY", "CC-BY-NC"]) == ["1", "2", "3", "4"]
    assert kept(["CC-BY"], licences={"Free with credit": "CC-BY-4.0"}) == ["3", "4", "5"]


def test_texts_that_a_source_gives_a_meaning_are_named_in_its_own_where(tmp_path: Path) -> None:
    keys = archive(tmp_path / "there")
    keys["dwca"]["where"] = {"licence": ["CC-BY"]}
    with pytest.raises(ConfigError, match=r"`where` of dwca does not know these texts; write `where: \{licence: "):
        source(**keys, licences={"Free with credit": "CC-BY-4.0"})


def test_what_the_source_says_counts_first_then_the_tables_in_order_then_the_defaults(
    tmp_path: Path, read: Read
) -> None:
    ranks = joined(
        tmp_path / "a.csv", "key,genus,owner,split\n1,Quercus,Kew,train\n2,Malus,,val\n3, ,,\n",
        taxon_genus="genus", rights_holder="owner", extra=["split"],
    )  # fmt: skip
    owners = joined(
        tmp_path / "b.tsv", "key\tauthor\tgenus\tkind\n1\tNobody\tPoa\tplant\n3\tSofia\tRosa\tplant\n",
        rights_holder="author", taxon_genus="genus", extra=["kind", "split"],
    )  # fmt: skip
    (tmp_path / "b.tsv").write_text(
        "key\tauthor\tgenus\tkind\tsplit\n1\tNobody\tPoa\tplant\ttest\n3\tSofia\tRosa\t\ttest\n"
    )
    given = list_of(
        tmp_path / "list.csv",
        "id,url,text,genus,kind\n1,http://a/1,x,,mine\n2,http://a/2,x,Fagus,\n3,http://a/3,x,,\n",
        columns={"taxon_genus": "genus", "extra": ["kind"]}, join=[ranks, owners], defaults={"rights_holder": "Lab"},
    )  # fmt: skip
    rows, lost = read(given)
    assert not lost
    assert [(row["taxon_genus"], row["rights_holder"], json.loads(row["extra"])) for row in rows] == [
        ("Quercus", "Kew", {"kind": "mine", "split": "train"}),
        ("Fagus", "Lab", {"kind": None, "split": "val"}),
        ("Rosa", "Sofia", {"kind": None, "split": "test"}),
    ]


def test_rows_with_one_key_give_what_they_agree_on_and_all_that_finds_no_partner_is_counted(
    tmp_path: Path, read: Read
) -> None:
    table = joined(
        tmp_path / "t.csv",
        "key,licence,genus\n1,CC0,Poa\n1,CC-BY,Poa\n2,CC0,\n2,,Rosa\n3 ,CC0,Malus\n,CC0,x\n9,CC0,x\n",
        licence="licence", taxon_genus="genus",
    )  # fmt: skip
    given = list_of(
        tmp_path / "l.csv", "id,url,text\n" + "".join(f"{n},http://a/{n},x\n" for n in (1, 2, 3, 4)), join=[table]
    )
    rows, _ = read(given)
    assert [(row.get("licence"), row.get("taxon_genus")) for row in rows] == [
        ("CC-BY\nCC0", "Poa"),
        ("CC0", "Rosa"),
        ("CC0", "Malus"),
        (None, None),
    ]
    (counts,) = counts_of(given, tmp_path)
    assert describe_join(counts) == (
        "join 1 of ours: 1 of 4 pictures (25.0%) have no partner among 7 rows, 1 of which belong to no picture here; "
        "1 keys are met without the blanks around them; 2 keys stand on several rows, which say different things for 1 "
        "of them (such as '1'): where they do, a field stays empty, but all licences and owners count; "
        "rows left out: 1 without key"
    )
    assert fault_of(given.join[0], counts) is None


def test_a_join_that_fits_no_row_is_a_fault_that_shows_both_sides(tmp_path: Path) -> None:
    table = joined(tmp_path / "t.csv", "key,genus\nx-1,Poa\n", taxon_genus="genus")
    given = list_of(tmp_path / "l.csv", "id,url,text\n1,http://a/1,x\n", join=[table])
    (counts,) = counts_of(given, tmp_path)
    assert fault_of(given.join[0], counts) == (
        "sources.ours.join[1]: none of 1 pictures has a row: record_key of the source ('1') and key of "
        f"{tmp_path}/t.csv ('x-1') have no value in common; name other columns in `on`"
    )


def tars(folder: Path) -> dict[str, Any]:
    for tar, names in (("a", "pq"), ("b", "qr")):
        write_tar(folder / f"{tar}.tar", [(name, {"jpg": picture(n)}) for n, name in enumerate(names)])
    return {"webdataset": {"path": str(folder), "fields": {"caption": [], "extra": ["__key__"]}}}


def pictures(folder: Path) -> dict[str, Any]:
    for name in "pqr":
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").write_bytes(picture(ord(name)))
    return {"folder": {"path": str(folder)}}


def archive(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    records = [{"gbifID": name, "kingdom": "Plantae"} for name in "pqr"]
    media = [{"gbifID": name, "identifier": f"https://a.b/{name}.jpg"} for name in "pqr"]
    return {"dwca": {"path": str(write_zip(folder / "a.zip", gbif_files(records, media))), "extra": ["gbifID"]}}


@pytest.mark.parametrize(
    ("make", "on", "genera"),
    [
        (tars, "extra.__key__", ["Poa", None, None, "Rosa"]),  # q stands in both tars: nobody knows which is meant
        (tars, {"record_key": "path"}, ["Poa", "Malus", None, "Rosa"]),
        (pictures, {"extra.folder": "__key__"}, ["Poa", "Malus", "Rosa"]),
        (archive, {"extra.gbifID": "__key__"}, ["Poa", "Malus", "Rosa"]),
    ],
)
def test_every_kind_of_source_is_joined_and_filtered_alike(
    tmp_path: Path, read: Read, make: Callable[[Path], dict[str, Any]], on: Any, genera: list[str | None]
) -> None:
    lines = ["__key__,path,genus", "p,a/p,Poa", "q,a/q,Malus", "r,b/r,Rosa"]
    table = joined(tmp_path / "t.csv", "\n".join(lines) + "\n", on, taxon_genus="genus")
    keys = make(tmp_path / "there")
    rows, lost = read(source(**keys, join=[table]))
    assert [row.get("taxon_genus") for row in rows] == genera
    assert not lost
    rows, lost = read(source(**keys, join=[table], where={"genus": ["Rosa", "poa"]}))
    assert [row["taxon_genus"] for row in rows] == ["Poa", "Rosa"]
    assert {(reason, value) for _, reason, _, value in lost} <= {("where_genus", "Malus"), ("where_genus", None)}
    assert len(lost) == len(genera) - 2


def test_where_takes_any_column_of_a_row_as_it_will_stand_there(tmp_path: Path, read: Read) -> None:
    rows = [
        "id,url,text,genus,species,licence,kind",
        "1,http://a/1,x,Quercus,robur,CC BY 4.0,Citizen Science",
        "2,http://a/2,x,,Quercus robur,,Museum Specimen: Plant",
        "3,http://a/3,x,Quercus,alba,cc-by-nc,",
    ]

    def kept(**where: Any) -> list[str]:
        columns = {"taxon_genus": "genus", "taxon_species": "species", "licence": "licence", "extra": ["kind"]}
        defaults = {"licence": "CC0-1.0"}
        given = list_of(tmp_path / "l.csv", "\n".join(rows) + "\n", columns=columns, defaults=defaults, where=where)
        found, lost = read(given)
        assert {reason for _, reason, _, _ in lost} <= {f"where_{name}" for name in where}
        assert len(found) + len(lost) == 3
        return [row["record_key"] for row in found]

    assert kept(species="Quercus robur") == ["1", "2"]
    assert kept(licence=["CC-BY", "CC0-1.0"]) == ["1", "2"]
    assert kept(licence={"not": ["CC-BY"]}) == ["2", "3"]
    assert kept(kind="CITIZEN_SCIENCE") == ["1"]
    assert kept(kind={"not": ["museum specimen: plant"]}) == ["1", "3"]
    assert kept(taxon_genus="quercus", record_key={"not": [1]}) == ["3"]
    assert kept(kind={"not": ["Citizen Science"]}, genus=["Quercus"]) == ["3"]


def test_the_where_of_an_archive_is_the_same_one(tmp_path: Path, read: Read) -> None:
    """Its terms may be those that no row keeps."""
    keys = archive(tmp_path / "there")
    keys["dwca"]["where"] = {"gbifID": {"not": ["p"]}, "kingdom": "plantae"}
    rows, lost = read(source(**keys, where={"record_key": {"not": ["r/https://a.b/r.jpg"]}}))
    assert [json.loads(row["extra"])["gbifID"] for row in rows] == ["q"]
    assert sorted(reason for _, reason, *_ in lost) == ["where_gbifID", "where_record_key"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"where": {"img_typ": ["a"]}},
            "where: its rows have no 'img_typ' (did you mean 'img_type'?); they have img_type, record_key, url, "
            "caption, kingdom. A column of a table counts once it is mapped or named in `extra`",
        ),
        ({"where": {"family": ["Fagaceae"]}}, "where: its rows have no 'family'"),
        ({"where": {"kingdom": {"no": ["Plantae"]}}}, "kingdom: write values, or `{not: [VALUE, ...]}`"),
        ({"where": {"kingdom": {"not": [None]}}}, "kingdom: null is no value; write '' for rows without one"),
        ({"where": {"kingdom": True}}, "kingdom: YAML reads NO, yes, true as truth values; put the value in quotes"),
        ({"join": [{"on": {"uuid": "k"}}]}, "on: a source has no 'uuid'; write record_key, url, or extra.NAME"),
        ({"join": [{"on": {"extra.page": "k"}}]}, "join: the source keeps no column 'page' (it keeps img_type)"),
        ({"join": [{"columns": {}}]}, "name at least one column of the table"),
        ({"join": [{"columns": {"record_key": "k"}}]}, "record_key: the key of a row is the source's own"),
    ],
)
def test_a_mistake_is_named_with_what_there_is(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    table = {"table": "t.csv", "on": {"record_key": "k"}, "columns": {"licence": "l"}}
    if joins := change.get("join"):
        change = {"join": [table | joins[0]]}
    columns = {"url": "u", "caption": "c", "taxon_kingdom": "k", "extra": ["img_type"]}
    with pytest.raises(ConfigError) as refused:
        source(table="l.csv", columns=columns, **change)
    assert words in str(refused.value)


def test_a_table_that_lacks_a_column_is_named_with_the_nearest(tmp_path: Path, read: Read) -> None:
    table = joined(tmp_path / "t.csv", "key,genera\n1,Poa\n", taxon_genus="genus")
    with pytest.raises(ConfigError, match=r"sources\.ours\.join\[1\]: .*t\.csv has no column 'genus' \(did you mean"):
        read(list_of(tmp_path / "l.csv", "id,url,text\n1,http://a/1,x\n", join=[table]))


def test_the_content_of_a_source_is_also_that_of_the_tables_that_are_joined(tmp_path: Path) -> None:
    table = joined(tmp_path / "t.csv", "key,genus\n1,Poa\n", taxon_genus="genus")
    given = list_of(tmp_path / "l.csv", "id,url,text\n1,http://a/1,x\n", join=[table])
    read_file = lambda path: Path(path).read_text()  # noqa: E731
    before = digest_inputs(given, read_file)
    assert len(before) == 2
    (tmp_path / "t.csv").write_text("key,genus\n1,Rosa\n")
    assert digest_inputs(given, read_file) != before
    moved = {**table, "table": str(tmp_path / "elsewhere.csv")}
    assert list_of(tmp_path / "l.csv", "", join=[moved]).identity() == given.identity(), "a path is no identity"


def test_a_join_over_many_batches_is_the_one_of_a_dict(tmp_path: Path) -> None:
    """Keys in any order, on several rows, missing and unknown: as a join by hand has it."""
    draw = random.Random(7)
    num = 2 * BATCH_ROWS + 77
    keys = [f"k{draw.randrange(num)}" for _ in range(num)]
    of_key: dict[str, set[str]] = {}
    for key, value in (pairs := [(key, f"v{draw.randrange(3)}") for key in draw.choices(keys, k=num // 2)]):
        of_key.setdefault(key, set()).add(value)
    columns = {"id": [str(n) for n in range(num)], "url": ["http://a/b"] * num, "text": ["x"] * num, "page": keys}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    pq.write_table(pa.table({"page": [key for key, _ in pairs], "name": [v for _, v in pairs]}), tmp_path / "t.parquet")
    join = {"table": str(tmp_path / "t.parquet"), "on": "extra.page", "columns": {"taxon_family": "name"}}
    mapped = {"url": "url", "caption": "text", "record_key": "id", "extra": ["page"]}
    given = source(table=str(tmp_path / "l.parquet"), columns=mapped, join=[join])
    found: dict[str, str | None] = {}
    for batch in read_rows(given, partial(open_scratch, str(tmp_path), 0.5)):
        found |= dict(zip(batch.rows["record_key"].to_pylist(), batch.rows["taxon_family"].to_pylist(), strict=True))
    expected = {str(n): of_key[key] if len(of_key.get(key, ())) == 1 else {None} for n, key in enumerate(keys)}
    assert found == {n: next(iter(values)) for n, values in expected.items()}
    assert len(set(found.values())) == 4
