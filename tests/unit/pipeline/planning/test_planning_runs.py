from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from manifests.errors import ConfigError
from pipeline.commands.plan.tables import read_runs
from pipeline.planning.runs.checks import check_runs, noise_floor, outside_hull, require_one_setting
from pipeline.planning.runs.tables import read_csv

DATA = Path(__file__).parent / "data"
LARGE = "model_size = '410M' AND step = 60000"

GOOD = """run,mix_plant,mix_general,loss_plant,loss_general
a,0,1,3.0,1.0
b,0.25,0.75,2.0,1.2
c,0.5,0.5,1.6,1.4
d,0.75,0.25,1.4,1.8
e,1,0,1.3,3.0
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str, where: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_runs(read_runs(write(tmp_path, text), where))
    return str(caught.value)


def test_the_public_table_reads_whole_and_filtered():
    table = read_runs(DATA / "3mix.csv", LARGE)
    assert table.domains == ("Github", "Books3", "Pile-CC")
    assert table.losses == ("Github", "Pile-CC", "Books3")  # the order of the losses is their own
    assert table.num_runs == 32
    assert np.allclose(table.shares.sum(axis=1), 1.0)
    zero = table.shares[:, 0] == 0
    assert zero.sum() == 6  # zero shares are real points
    whole = read_runs(DATA / "3mix.csv")
    assert whole.num_runs == 1088
    assert np.isnan(whole.loss_values).sum() == 37  # empty cells are not measured, not wrong


def test_a_run_called_007_keeps_its_name(tmp_path):
    (tmp_path / "runs.csv").write_text("run,seed,mix_a,mix_b,loss_a\n007,7,0.5,0.5,1\n010,8,1,0,0.25\n")
    columns, _ = read_csv(tmp_path / "runs.csv")
    assert (columns["run"], columns["seed"], columns["mix_a"]) == (["007", "010"], [7, 8], [0.5, 1.0])


def test_parquet_gives_what_csv_gives(tmp_path):
    arrow = pyarrow.csv.read_csv(DATA / "2mix.csv")
    pq.write_table(arrow, tmp_path / "runs.parquet")
    first = read_runs(DATA / "2mix.csv", "step = 30000")
    second = read_runs(tmp_path / "runs.parquet", "step = 30000")
    assert np.array_equal(first.shares, second.shares)
    assert np.array_equal(first.loss_values, second.loss_values)
    assert np.array_equal(first.rows, second.rows + 1), "a header is a row"


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("b,0.25,0.75", "b,0.25,0.70", ["row 3", "sum to 0.95", "off by -0.05"]),
        ("b,0.25,0.75", "b,1.25,-0.25", ["row 3", "mix_plant is 1.25", "0 to 1"]),
        ("b,0.25,0.75", "b,,0.75", ["row 3", "mix_plant is empty", "write 0"]),
        ("c,0.5,0.5,1.6", "c,0.5,0.5,high", ["row 4", "loss_plant", "'high'", "not a number"]),
        ("c,0.5,0.5,1.6", "c,0.5,0.5,inf", ["row 4", "loss_plant is inf", "diverged"]),
        ("mix_plant,", "plant,", ["1 mix_<domain> column", "2 to 200"]),
        ("loss_plant,loss_general", "plant,general", ["no loss_<name> or accuracy_<name> column"]),
    ],
)
def test_a_bad_row_is_named(tmp_path, old, new, parts):
    message = refusal(tmp_path, GOOD.replace(old, new))
    for part in parts:
        assert part in message


def test_rows_are_counted_in_the_file_not_in_the_filter(tmp_path):
    message = refusal(tmp_path, GOOD.replace("e,1,0", "e,1,0.5"), where="run >= 'd'")
    assert "row 6" in message, "as a spreadsheet counts it"
    assert "off by +0.5" in message


def test_shares_rounded_to_three_decimals_pass_and_are_made_to_sum_to_one(tmp_path):
    rows = ["mix_a,mix_b,mix_c,loss_a", "0.333,0.333,0.333,1.0", "0.2,0.3,0.5,2.0"]
    table = read_runs(write(tmp_path, "\n".join(rows) + "\n"))
    assert table.shares[0] == pytest.approx([1 / 3] * 3)


def test_a_filter_that_fails_or_keeps_nothing_says_so(tmp_path):
    assert "fails" in refusal(tmp_path, GOOD, where="no_such_column = 1")
    assert "no rows are left" in refusal(tmp_path, GOOD, where="run = 'z'")
    missing = tmp_path / "none.csv"
    with pytest.raises(ConfigError, match="no such table"):
        read_runs(missing)


def test_a_filter_cannot_read_other_files(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("x\n1\n")
    message = refusal(tmp_path, GOOD, where=f"run IN (SELECT x FROM read_csv('{secret}'))")
    assert "fails" in message


def test_a_filter_sees_numbers_dates_and_truths_in_a_csv(tmp_path):
    header, *rows = GOOD.splitlines()
    cells = ["1,2.5,2026-11-30,2026-11-30T08:00:00,true,007"] * 3 + [",,,,,x"] * 2
    text = "\n".join([f"{header},seed,half,day,ended,went,text", *map(",".join, zip(rows, cells, strict=True))]) + "\n"
    file = write(tmp_path, text)
    told = "seed + 1 = 2 AND half < 3 AND year(day) = 2026 AND hour(ended) = 8 AND went AND text = '007'"
    assert read_runs(file, told).rows.tolist() == [2, 3, 4]
    assert read_runs(file, "seed IS NULL").rows.tolist() == [5, 6]
    assert read_runs(file).seeds.tolist() == ["1", "1", "1", "", ""]


def test_too_few_mixtures_are_refused_and_few_are_warned_of(tmp_path):
    lines = GOOD.splitlines()
    assert "2 different mixture(s)" in refusal(tmp_path, "\n".join(lines[:3]) + "\n")
    warnings = check_runs(read_runs(write(tmp_path, "\n".join(lines[:5]) + "\n")))
    assert any("only 4 different mixtures" in line for line in warnings)
    assert check_runs(read_runs(write(tmp_path, GOOD))) == []


def test_replicates_give_a_noise_floor_and_contradictions_are_refused(tmp_path):
    text = GOOD.replace("loss_general\n", "loss_general,seed\n")
    text = "\n".join(f"{line},1" if line[0] in "abcde" else line for line in text.splitlines())
    twin = text + "\nf,0.5,0.5,1.62,1.4,2\n"
    table = read_runs(write(tmp_path, twin))
    assert check_runs(table) == []
    floor = noise_floor(table)
    assert floor[0] == pytest.approx(np.std([1.6, 1.62], ddof=1))
    assert floor[1] == 0.0
    message = refusal(tmp_path, text + "\nf,0.5,0.5,1.62,1.4,1\n")
    assert "rows 4 and 7" in message
    assert "same seed" in message
    without_seeds = "\n".join(line.rpartition(",")[0] for line in text.splitlines())
    message = refusal(tmp_path, without_seeds + "\nf,0.5,0.5,2.9,1.4\n")
    assert "disagree by 76% of the whole range" in message
    assert "add a column seed" in message
    noisy = check_runs(read_runs(write(tmp_path, text + "\nf,0.5,0.5,2.9,1.4,2\n")))
    assert any("loss_plant: rows 4 and 7 have the same mixture and differ by 76%" in line for line in noisy)


def test_runs_on_one_edge_are_refused_and_a_single_share_is_warned_of(tmp_path):
    head = "mix_a,mix_b,mix_c,loss_a\n"
    edge = head + "".join(f"{a / 8},{1 - a / 8},0,{a}\n" for a in range(8))
    message = refusal(tmp_path, edge)
    assert "mix_c is 0 in every run" in message
    assert "give a table without mix_c" in message
    without = "\n".join(",".join(line.split(",")[:2] + line.split(",")[3:]) for line in edge.splitlines())
    assert check_runs(read_runs(write(tmp_path, without))) == []
    fixed = head + "".join(f"{a / 10},{0.75 - a / 10},0.25,{a}\n" for a in range(7))
    warnings = check_runs(read_runs(write(tmp_path, fixed)))
    assert any("c has the single share 0.25" in line for line in warnings)
    together = head + "".join(f"{a / 20},{0.1 + a / 20},{0.9 - a / 10},{a}\n" for a in range(8))
    warnings = check_runs(read_runs(write(tmp_path, together)))
    assert any("vary in 1 direction(s) only, of 2" in line for line in warnings)


def test_losses_measured_in_different_ways_are_refused(tmp_path):
    lines = GOOD.splitlines()
    text = "\n".join([lines[0] + ",validation_size"] + [f"{line},{1000 + (line[0] == 'd')}" for line in lines[1:]])
    message = refusal(tmp_path, text + "\n")
    assert "not comparable" in message
    assert "1001 (row 5)" in message


def test_outside_hull():
    tried = np.array([[0.2, 0.8, 0.0], [0.8, 0.2, 0.0], [0.2, 0.2, 0.6]])
    asked = np.array([[0.4, 0.4, 0.2], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
    assert outside_hull(tried, asked).tolist() == [False, False, True, True]


def test_arrow_nulls_are_unmeasured_losses(tmp_path):
    values = pa.table({"mix_a": [0.0, 0.5, 1.0], "mix_b": [1.0, 0.5, 0.0], "loss_a": [1.0, None, 2.0]})
    pq.write_table(values, tmp_path / "runs.parquet")
    assert np.isnan(read_runs(tmp_path / "runs.parquet").loss_values[1, 0])


def test_a_loss_that_a_filter_leaves_empty_is_left_out_with_a_warning():
    table = read_runs(DATA / "3mix.csv", "model_size = '410M' AND step = 30000")  # only Github was measured there
    assert table.losses == ("Github",)
    assert table.loss_values.shape == (8, 1)
    assert table.warnings == ("loss_Pile-CC, loss_Books3 has no value in any of these rows: it is left out",)


def test_nothing_measured_at_all_is_refused(tmp_path):
    text = "mix_a,mix_b,loss_a\n" + "".join(f"{a / 4},{1 - a / 4},\n" for a in range(5))
    assert "loss_a has no value in any row: nothing was measured" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("separator", "decimal", "encoding"),
    [(",", ".", "utf-8-sig"), (";", ".", "utf-8"), (";", ",", "utf-8-sig"), ("\t", ".", "utf-8")],
)
def test_a_csv_of_another_office_reads_the_same(tmp_path, separator, decimal, encoding):
    other = tmp_path / "other.csv"
    other.write_text(GOOD.replace(",", separator).replace(".", decimal), encoding=encoding)
    expected, found = read_runs(write(tmp_path, GOOD)), read_runs(other)
    assert found.domains == expected.domains
    assert np.array_equal(found.shares, expected.shares)
    assert np.array_equal(found.loss_values, expected.loss_values)


def test_decimal_commas_are_seen_wherever_they_start(tmp_path):
    rows = ["mix_a;mix_b;loss_a", "1;0;2", "0,5;0,5;1,5", "0;1;1"]
    assert read_runs(write(tmp_path, "\n".join(rows) + "\n")).loss_values[:, 0].tolist() == [2.0, 1.5, 1.0]


def test_utf16_and_a_written_nan_are_refused(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-16; save it as UTF-8"):
        read_runs(file)
    file.write_bytes(GOOD.replace("run,", "r\xfcn,").encode("latin-1"))
    with pytest.raises(ConfigError, match=r"runs\.csv: cannot be read as csv: byte 1 is no UTF-8"):
        read_runs(file)
    file.write_text("")
    with pytest.raises(ConfigError, match=r"runs\.csv: no rows"):
        read_runs(file)
    parquet = tmp_path / "runs.parquet"
    losses = ["1.0", "nan", "2.0", "1.5"]
    pq.write_table(pa.table({"mix_a": [0, 0.3, 0.5, 1], "mix_b": [1, 0.7, 0.5, 0], "loss_a": losses}), parquet)
    with pytest.raises(ConfigError, match="row 2: loss_a is nan; a run that diverged"):
        read_runs(parquet)
    twins = pa.table({"mix_a": [0.0], "mix_b": [1.0], "loss_x": [1.0], "loss_X": [1.0]})
    pq.write_table(twins, parquet)
    with pytest.raises(ConfigError, match="loss_X or loss_x stands more than once"):
        read_runs(parquet)


def test_a_table_of_the_wrong_shape_is_refused_with_the_place(tmp_path):
    assert "row 4 has 4 cells, the header 5" in refusal(tmp_path, GOOD.replace("c,0.5,0.5,1.6,1.4", "c,0.5,0.5,1.6"))
    twice = refusal(tmp_path, GOOD.replace("mix_general", "mix_plant"))
    assert "mix_plant stands more than once" in twice
    assert "mix_PLANT or mix_plant stands more" in refusal(tmp_path, GOOD.replace("mix_general", "mix_PLANT"))
    assert "the column 'mix_' names no domain" in refusal(tmp_path, GOOD.replace("mix_general", "mix_"))
    assert "the columns are: run, Mix_plant" in refusal(tmp_path, GOOD.replace("mix_", "Mix_"))
    assert "percent must be divided by 100" in refusal(tmp_path, GOOD.replace("b,0.25,0.75", "b,25,75"))


def test_a_table_of_several_settings_is_refused_with_a_way_out():
    table = read_runs(DATA / "3mix.csv")
    with pytest.raises(ConfigError) as caught:
        require_one_setting(table)
    message = str(caught.value)
    assert "model_size = '410M' AND step = 60000: 32 runs" in message
    assert "--where \"model_size = '410M' AND step = 60000\"" in message
    require_one_setting(read_runs(DATA / "3mix.csv", "model_size = '410M' AND step = 60000"))
