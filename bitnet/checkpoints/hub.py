"""The Hugging Face hub: a model's files in the hub's own cache, of one commit, checksums compared.

A note in our cache folder says which files a pull found whole, so that a later load needs no
network. What a commit holds is what the hub says: every byte is compared with the hub's checksums.
The huggingface_hub library does the transfer and is imported only then.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FormatError
from ..formats.atomic_write import READABLE, atomic, check_free_space, check_trusted
from ..formats.safetensors import INDEX, SINGLE
from ..formats.text_files import read_json
from ..progress import Meter, Progress, silent
from .choose_file import choose, ggufs, instead
from .hub_names import HubReference, check_name, of_address, parse
from .model_files import has_safetensors, joined
from .repack_cache import cache_folder

log = logging.getLogger("bitnet")

HUB_EXTRA = "pip install 'bitnet-engine[hub]'"
# The files a model is read from, beside its weights; no other file of a repository is fetched.
FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "modules.json",
    "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
DOWNLOADING = "downloading"  # what progress begins with while the library shows its own
READ_BYTES = 1 << 20  # of a file that is checked, at a time
TIMEOUT = 10  # seconds for the hub's first answer; the library would wait for ever
NOTE_SUFFIX = ".hub.json"
NOTE_VERSION = 1  # what a note holds; one of another number is ignored
_SHARD = re.compile(r"[^/]+-of-\d+\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NETWORK = ("requests", "urllib3", "httpx", "httpx2")  # HTTP clients the library has been built on


class Facts(NamedTuple):
    """What the hub says of a file. algorithm: "sha256", or "git" for the SHA-1 of a git blob."""

    n_bytes: int
    algorithm: str
    digest: str


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit in the hub's cache. files: {name: Facts}."""

    repo: str
    commit: str
    files: dict[str, Facts]

    @property
    def folder(self) -> Path:
        return repo_folder(self.repo) / "snapshots" / self.commit

    @property
    def path(self) -> Path:
        """What to load: the .gguf, or the folder of a safetensors model."""
        first = next(iter(self.files))
        return self.folder / first if first.endswith(".gguf") else self.folder

    @property
    def n_bytes(self) -> int:
        return sum(facts.n_bytes for facts in self.files.values())

    def is_whole(self) -> bool:
        """Whether every file is there in its size; contents were compared when it was pulled."""
        try:
            return all(
                os.path.getsize(self.folder / name) == facts.n_bytes
                for name, facts in self.files.items()
            )
        except OSError:
            return False


def find(name: str | os.PathLike[str], progress: Progress = silent) -> Path:
    """The Path of a model: a local one as it is, else that of a model of the hub.

    A text ORG/NAME[@REVISION][:FILE.gguf] that is no path here is taken from the hub's cache if an
    earlier pull left it whole there, without network, and pulled otherwise. Where that cannot be,
    a GGUF that another program left there is used: it says itself how long it is, a folder does not
    say which files belong to it. Anything that looks like a path is one: it exists, has another
    number of slashes than one (in front of the colon), or ends as a file does.
    progress: of the pull. Raises what pull does.
    """
    if not isinstance(name, str) or _is_local(name):
        return Path(name)
    snapshot = cached(name)
    if snapshot:
        return snapshot.path
    try:
        return pull(name, progress=progress)
    except _Unreachable:
        path = _foreign_model(parse(name))
        if path is None or path.is_dir():
            raise
        log.warning("%s is used as another program left it: the hub cannot be asked", path)
        return path


def pull(name: str, revision: str | None = None, progress: Progress = silent) -> Path:
    """The Path of a hub's model, brought up to date with its revision; see fetch."""
    return fetch(name, revision, progress).path


def fetch(name: str, revision: str | None = None, progress: Progress = silent) -> Snapshot:
    """The Snapshot of a hub's model: what is not in the cache is downloaded, and all of it checked.

    name: as hub_names.parse takes it. revision: a branch, tag or commit, "main" if neither says
    so; resolved to a commit first. progress: is told bytes, a file at a time where it is downloaded
    (the library has bars of its own for a terminal), see bitnet/progress.py. What it raises leaves
    whole files in the hub's cache, and no model that counts as pulled.
    ValueError for a name of another form or a choice of files to be made, FormatError for a file
    that is not what the hub says (it is deleted) or a repository without a model, OSError if the
    repository cannot be reached or read, or the disk is too full.
    """
    reference = parse(name, revision)
    repo = reference.repo
    api = library_api(repo)
    progress(f"asking for {repo}", 0, 0)
    with _hub_errors(reference):
        info = api.model_info(
            repo, revision=reference.revision, files_metadata=True, timeout=TIMEOUT
        )
    snapshot, remark = _chosen(info, reference)
    log.info("%s: %s is commit %s", repo, reference.revision, snapshot.commit)
    _check_room(snapshot)
    if remark:
        log.warning("%s: %s", repo, remark)
    done = 0
    for file, facts in snapshot.files.items():
        progress(f"{DOWNLOADING} {file}", done, snapshot.n_bytes)
        with _hub_errors(reference):
            api.hf_hub_download(repo, file, revision=snapshot.commit, cache_dir=str(hub_cache()))
        done += facts.n_bytes
    meter = Meter(progress, snapshot.n_bytes)
    for file, facts in snapshot.files.items():
        _check(snapshot.folder / file, facts, meter)
    for alias in {reference, reference._replace(revision=snapshot.commit)}:
        _write_note(alias, snapshot)
    log.info("%s: %d files, %d bytes", snapshot.folder, len(snapshot.files), snapshot.n_bytes)
    return snapshot


def cached(name: str) -> Snapshot | None:
    """The Snapshot that an earlier pull of this name left, or None, also for what is no name.

    Nothing is asked of the network.
    """
    try:
        return read_note(parse(name))
    except ValueError:
        return None


def hub_cache() -> Path:
    """The folder of the hub's cache, chosen as its library does but at the time of the call."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    chosen = chosen or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(chosen))).absolute()


def repo_folder(repo: str) -> Path:
    return hub_cache() / f"models--{repo.replace('/', '--')}"


# names --------------------------------------------------------------------------------------------


def _is_local(name: str) -> bool:
    try:
        reference = parse(name)
    except ValueError:
        return True
    is_file_name = reference.file is None and name.endswith((".gguf", ".safetensors"))
    n_slashes = of_address(name).partition(":")[0].count("/")
    return n_slashes != 1 or is_file_name or os.path.lexists(name)


# the choice of files ------------------------------------------------------------------------------


def _chosen(info: Any, reference: HubReference) -> tuple[Snapshot, str]:
    """The Snapshot to be, of the library's ModelInfo: its commit and the files of one model; and
    what is to be said of the choice, or ""."""
    repo, revision, file = reference
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise FormatError(repo, "commit", commit, "40 hexadecimal digits")
    if _COMMIT.fullmatch(revision) and commit != revision:
        raise FormatError(repo, "commit", commit, f"{revision} was asked for")
    for entry in info.siblings or ():
        check_name(entry.rfilename, repo)
    listed = {entry.rfilename: entry for entry in info.siblings or ()}
    names, remark = _choose(repo, sorted(listed), file)
    return Snapshot(repo, commit, {name: _facts(repo, listed[name]) for name in names}), remark


def _choose(repo: str, names: Sequence[str], file: str | None) -> tuple[list[str], str]:
    """The names of one model, of safetensors with what belongs to them, or of a .gguf alone; and
    what is to be said of the choice, or ""."""
    models, remark = ggufs(names), ""
    first_names = joined([model[0] for model in models])
    if file is not None:
        if file not in names:
            there = f"it has {first_names}"
            raise FileNotFoundError(errno.ENOENT, f"no {file} on the hub; {there}", repo)
        model = next(model for model in models if file in model)
        if better := instead(file, names):
            remark = f"{file} is not as trained or cannot be used; {repo}:{better} can"
    elif has_safetensors(names):
        weights = [SINGLE] if SINGLE in names else [n for n in names if _SHARD.fullmatch(n)]
        folder = [n for n in FILES if n in names] + weights + [INDEX] * (SINGLE not in names)
        return folder, remark
    elif not models:
        limit = f"config.json with {SINGLE}, or a .gguf; no other weights are fetched"
        raise FormatError(repo, "files", joined(names), limit)
    elif (chosen := choose(models)) is None:
        example = f"{repo}:{models[0][0]}"
        raise ValueError(f"{repo}: which of {first_names}? (name one, such as {example})")
    else:
        model = chosen.parts
        if chosen.why:
            remark = f"{model[0]} of {len(models)} models: {chosen.why}"
    for part in model:
        if part not in names:
            raise FormatError(repo, part, "missing", f"a part of {model[0]}")
    return model, remark


def _facts(repo: str, entry: Any) -> Facts:
    """The Facts of the library's RepoSibling: a large file has its SHA-256, others their git id."""
    if entry.lfs is None:
        facts = Facts(entry.size, "git", entry.blob_id)
    else:
        facts = Facts(entry.lfs.size, "sha256", entry.lfs.sha256)
    n_digits = 40 if facts.algorithm == "git" else 64
    if type(facts.n_bytes) is not int or facts.n_bytes < 0:
        raise FormatError(repo, f"{entry.rfilename} size", facts.n_bytes, "a number of bytes")
    if not re.fullmatch(rf"[0-9a-f]{{{n_digits}}}", str(facts.digest)):
        limit = f"{n_digits} hexadecimal digits"
        raise FormatError(repo, f"{entry.rfilename} {facts.algorithm}", facts.digest, limit)
    return facts


# what was downloaded ------------------------------------------------------------------------------


def _check_room(snapshot: Snapshot) -> None:
    blobs = repo_folder(snapshot.repo) / "blobs"
    missing = {
        f.digest: f.n_bytes for f in snapshot.files.values() if not (blobs / f.digest).exists()
    }
    if missing:
        folder = next(parent for parent in blobs.parents if parent.exists())
        check_free_space(folder, sum(missing.values()))


def _check(path: Path, facts: Facts, meter: Meter) -> None:
    """FormatError, and the file is gone, unless its content has the hub's checksum."""
    digest = _digest(path, facts.algorithm, meter)
    if digest != facts.digest:
        _delete(path)
        limit = f"the hub says {facts.digest}; it was deleted, pull again"
        raise FormatError(path, facts.algorithm, digest, limit)


def _digest(path: Path, algorithm: str, meter: Meter) -> str:
    def git_blob() -> Any:
        header = b"blob %d\0" % os.path.getsize(path)
        return hashlib.sha1(header, usedforsecurity=False)

    with open(path, "rb") as file:
        digest = hashlib.sha256() if algorithm == "sha256" else git_blob()
        while part := file.read(READ_BYTES):
            digest.update(part)
            meter.add(f"checking {path.name}", len(part))
    return digest.hexdigest()


def _delete(path: Path) -> None:
    """Unlink a snapshot's link, its blob, and what newer caches link that to; nothing outside."""
    cache = hub_cache().resolve()
    while path.parent.resolve().is_relative_to(cache):
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            break
        path = target


# notes --------------------------------------------------------------------------------------------


def note_paths() -> list[Path]:
    """Every file in our cache folder that looks like a note."""
    folder = cache_folder()
    return [] if folder is None or not folder.is_dir() else sorted(folder.glob(f"*{NOTE_SUFFIX}"))


def _note_path(reference: HubReference) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    digest = hashlib.sha256(json.dumps(reference).encode()).hexdigest()
    return folder / f"{reference.repo.replace('/', '--')}-{digest[:16]}{NOTE_SUFFIX}"


def _write_note(reference: HubReference, snapshot: Snapshot) -> None:
    path = _note_path(reference)
    if path is None:
        return
    note = {"version": NOTE_VERSION, "request": reference, "commit": snapshot.commit}
    note["files"] = snapshot.files
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_trusted(path.parent)
        with atomic(path, READABLE) as file:
            file.write(json.dumps(note, indent=1).encode())
    except OSError as error:
        log.warning("no note of what was pulled, the next load asks the hub again: %s", error)


def read_note(reference: HubReference) -> Snapshot | None:
    """The Snapshot that a note tells of, if all of it is still there; else None."""
    path = _note_path(reference)
    try:
        for place in (path.parent, path) if path else ():
            check_trusted(place)
        note = read_json(path) if path else {}
        if note.get("version") != NOTE_VERSION or note["request"] != list(reference):
            return None
        files = {name: Facts(*facts) for name, facts in note["files"].items()}
        for name in (note["commit"], *files):
            check_name(name, reference.repo)
        snapshot = Snapshot(reference.repo, note["commit"], files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return snapshot if files and snapshot.is_whole() else None


# the library --------------------------------------------------------------------------------------


def library_api(repo: str) -> Any:
    """The HfApi that all requests are made with; FileNotFoundError without the library."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        reason = f"not here, and to fetch it from the Hugging Face hub: {HUB_EXTRA}"
        raise _Unreachable(errno.ENOENT, reason, repo) from None
    return HfApi(library_name="bitnet-engine")


@contextlib.contextmanager
def _hub_errors(reference: HubReference) -> Iterator[None]:
    """The library's exceptions, of any version, as an OSError of one line that says what to do."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils  # which does not say that it exports them
    repo = reference.repo
    try:
        yield
    except utils.GatedRepoError:
        reason = "a gated repository: accept its terms on its page and set HF_TOKEN"
        raise PermissionError(errno.EACCES, reason, repo) from None
    except utils.RepositoryNotFoundError:
        reason = "neither a path here nor a public repository of the hub (private: set HF_TOKEN)"
        raise FileNotFoundError(errno.ENOENT, reason, repo) from None
    except utils.RevisionNotFoundError:
        reason = f"the repository has no revision {reference.revision}"
        raise FileNotFoundError(errno.ENOENT, reason, repo) from None
    except utils.OfflineModeIsEnabled:
        raise _unreachable(reference, "HF_HUB_OFFLINE is set") from None
    except utils.LocalEntryNotFoundError as error:  # the library's word for: could not ask
        raise _unreachable(reference, error.__cause__ or error) from None
    except utils.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        advice = " (set HF_TOKEN to one that may read it)" if status in (401, 403) else ""
        raise OSError(errno.EIO, f"the hub answered {status}{advice}", repo) from None
    except Exception as error:
        # requests raises what is a ValueError and an OSError for an answer that is no JSON
        if isinstance(error, ValueError) or not (
            isinstance(error, OSError) or _is_of_network(error)
        ):
            reason = f"the hub's answer was not understood ({_line(error)})"
            raise OSError(errno.EIO, reason, repo) from None
        if _is_of_network(error):
            raise _unreachable(reference, error) from None
        raise  # a folder that cannot be written, a full disk


def _is_of_network(error: BaseException) -> bool:
    of_system = isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))
    return of_system or type(error).__module__.partition(".")[0] in _NETWORK


class _Unreachable(FileNotFoundError):
    """Nobody can be asked: find() then looks at what other programs have left."""


def _unreachable(reference: HubReference, error: object) -> _Unreachable:
    """The exception for a hub that cannot be asked, with what is here all the same."""
    reason = f"the hub cannot be reached ({_line(error)})"
    path = _foreign_model(reference)
    if read_note(reference):
        advice = f"{reason}; the cache has a commit of it that other commands use"
    elif path:
        advice = f"{reason}; another program's download is in {path}: give that path"
    else:
        advice = f"neither a path here nor in the cache, and {reason}; pull it where it can be"
    return _Unreachable(errno.ENOENT, advice, reference.repo)


def _foreign_model(reference: HubReference) -> Path | None:
    """The model in a snapshot of this revision that has no note of ours: a .gguf, or a folder of
    which nobody knows whether it is whole."""
    repo = repo_folder(reference.repo)
    commit = reference.revision
    with contextlib.suppress(OSError, ValueError):
        commit = (repo / "refs" / commit).read_text().strip()
    folder = repo / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    models = ggufs(names)
    if reference.file is not None:
        models = [model for model in models if reference.file in model]
    elif has_safetensors(names):
        return folder
    chosen = choose(models)
    return folder / chosen.parts[0] if chosen and names.issuperset(chosen.parts) else None


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
