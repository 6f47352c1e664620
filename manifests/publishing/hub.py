"""Upload a folder to a repository of the Hugging Face Hub, so that a stopped upload goes on where it was.

huggingface_hub does the work: it sends what the Hub does not hold yet, and commits many files in batches. One file of
the folder is its marker, which is sent last: a repository without it is not whole. The token comes from the environment
(HF_TOKEN) or from the store of `hf auth login`, never from an option. Gives up with ConfigError on what the Hub refuses
for good, and with RunError on what may pass when the same command runs again.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from manifests.errors import ConfigError, RunError
from manifests.services.packages import require
from manifests.stores import faults

SCHEME = "hf:"
Kind = Literal["dataset", "model"]
_OWN_FILES = {".gitattributes"}  # the Hub puts it into every repository
_REFUSALS = {401: "the token is missing or not valid", 403: "the token may not write there"}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_Result = TypeVar("_Result")


def repository_of(target: str) -> str:
    """OWNER/NAME of a target written hf:OWNER/NAME.

    Raises: ConfigError.
    """
    repository = target.removeprefix(SCHEME)
    if repository == target or not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{target}: write hf:OWNER/NAME, as hf:my-lab/plants")
    return repository


def page_of(repository: str, kind: Kind) -> str:
    """Address of the page of a repository.

    Raises: ConfigError when huggingface_hub is not installed.
    """
    return f"{_api().endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def upload_folder(
    folder: str, repository: str, kind: Kind, *, public: bool, marker: str, more: Mapping[str, bytes] | None = None
) -> list[str]:
    """Make the repository hold the files of `folder` and `more` and nothing else; returns lines that say what is there.

    A new repository is private unless `public`. `marker` is the file of the folder that makes it whole; `more` goes
    with it.

    Raises: ConfigError when the token may not write, when the repository is public and `public` is not said, and when
        it holds files that no such upload put there; RunError when the Hub or the way to it fails.
    """
    from huggingface_hub import CommitOperationAdd

    api, beside = _api(), dict(more or {})
    call = partial(_call, repository)
    call("create the repository", api.create_repo, repository, repo_type=kind, private=not public, exist_ok=True)
    info = call("look at the repository", api.repo_info, repository, repo_type=kind)
    if not info.private and not public:
        raise ConfigError(
            f"hf:{repository}: exists and is public, but this upload is private; make it private on its page, choose "
            "another name, or say --public"
        )
    local = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    there = {file.rfilename for file in info.siblings or ()} - _OWN_FILES
    old = sorted(there - local - beside.keys())
    if old and marker not in there:
        raise ConfigError(
            f"hf:{repository}: holds {len(old):,} files that are not of this upload, first: {old[0]}; they would be "
            "removed. Choose another name, or remove them yourself"
        )
    call(
        "send the files",
        api.upload_folder,
        repo_id=repository,
        repo_type=kind,
        folder_path=folder,
        ignore_patterns=[marker],
        delete_patterns=[glob.escape(name) for name in old] or None,
        commit_message=f"Upload {Path(folder).name}",
    )

    def finish() -> Any:
        last = [CommitOperationAdd(name, content) for name, content in sorted(beside.items())]
        last.append(CommitOperationAdd(marker, str(Path(folder, marker))))
        return api.create_commit(repository, last, repo_type=kind, commit_message=f"Finish {Path(folder).name}")

    done = call("finish the upload", finish)
    lines = [f"published: {page_of(repository, kind)} ({'private' if info.private else 'public'}), commit {done.oid}"]
    if info.private and public:
        lines.append("note: the repository was there already and is private; make it public on its page")
    return lines


def _api() -> Any:
    require("hf:", "huggingface_hub")
    from huggingface_hub import HfApi

    return HfApi(library_name="plantmix")


def _call(repository: str, what: str, function: Callable[..., _Result], *args: Any, **options: Any) -> _Result:
    """Return a call of huggingface_hub, repeated after a passing fault, with its errors as ours."""

    def passes(error: Exception) -> bool:
        # huggingface_hub raises RuntimeError for a file that did not arrive
        return faults.status_of(error) is not None or isinstance(error, RuntimeError) or faults.may_pass(error)

    def problem(error: Exception) -> RunError:
        status = faults.status_of(error)
        if status in _REFUSALS:
            raise ConfigError(
                f"hf:{repository}: could not {what}, {_REFUSALS[status]} ({status}). Set HF_TOKEN, or run `hf auth "
                "login`, with a token that may write there"
            ) from None
        explained = RunError(
            f"hf:{repository}: could not {what}: {_words_of(error)}. What arrived stays there; run the same command "
            "again to go on"
        )
        if status is not None and not faults.may_pass(error):
            raise explained from error
        return explained

    return faults.patiently(partial(function, *args, **options), problem, passes)


def _words_of(error: BaseException) -> str:
    """One line that names the first cause too."""
    causes = filter(None, (error, error.__cause__))
    return "; ".join(" ".join(str(cause).split())[:200] or type(cause).__name__ for cause in causes).rstrip(".")
