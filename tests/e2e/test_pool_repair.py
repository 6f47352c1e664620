"""A pool file that is gone: the repair that the error message advises ends in a build that holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import done, release_of, run_here
from damaging import NUM_PICTURES, make_pictures, write_config

from manifests.contract.reader import open_reader
from pipeline.demo.server import serving


@pytest.mark.slow
def test_a_lost_pool_file_is_fetched_anew_and_what_the_web_lost_is_lost_everywhere(tmp_path: Path) -> None:
    make_pictures(tmp_path / "web")
    with serving(tmp_path / "web") as server:
        root = f"http://127.0.0.1:{server.port}/"
        done("build", write_config(tmp_path, root, 20))
        with open_reader(str(tmp_path / "work")) as sql:
            pool_file, url = sql.execute("SELECT min(pool_file), arg_min(final_url, pool_file) FROM facts").fetchall()[
                0
            ]
        (tmp_path / "work/pool" / pool_file).unlink()
        (tmp_path / "web" / url.rpartition("/")[2]).unlink()
        again = run_here("build", write_config(tmp_path, root, 20))
        assert again.returncode == 0, again.stderr
        with open_reader(str(tmp_path / "work")) as sql:
            held = sql.execute("SELECT outcome, count(*), count(pool_file) FROM facts GROUP BY 1 ORDER BY 1").fetchall()
        assert held == [("http_404", 3, 0), ("ok", NUM_PICTURES - 1, NUM_PICTURES - 1)]  # two were dead before
        num_kept, num_all = NUM_PICTURES - 1, NUM_PICTURES + 2
        assert f"fetch: done, {num_kept} of {num_all} kept, dropped: 3 http_404" in again.stderr
        done("build", write_config(tmp_path, root, 7))
    checked = run_here("verify", release_of(tmp_path / "work"), "--deep")
    assert checked.returncode == 0, checked.stdout + checked.stderr
