"""What was pulled from the hub: the models that notes tell of, and how they are deleted."""

import contextlib
import errno
import os
from pathlib import Path
from typing import NamedTuple

from ..formats.text_files import read_json
from . import hub
from .hub_names import HubReference, of_address, parse


class Pulled(NamedTuple):
    """A model in the hub's cache. revisions: what it was asked for by, commits left out. notes: the
    files that tell of it."""

    snapshot: hub.Snapshot
    revisions: tuple[str, ...]
    notes: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What commands call it."""
        first = self.revisions[0] if self.revisions else self.snapshot.commit
        file = next(iter(self.snapshot.files))
        revision = "" if first == "main" else f"@{first}"
        return self.snapshot.repo + revision + f":{file}" * file.endswith(".gguf")


def pulled() -> list[Pulled]:
    """Every model that a pull left whole, by name. Nothing is asked of the network."""
    found: dict[tuple[str, str, tuple[str, ...]], Pulled] = {}
    for path in hub.note_paths():
        try:
            reference = HubReference(*read_json(path)["request"])
            snapshot = hub.read_note(reference)
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if snapshot is None:
            continue
        key = (snapshot.repo, snapshot.commit, tuple(snapshot.files))
        before = found.get(key, Pulled(snapshot, (), ()))
        revisions = {*before.revisions, reference.revision} - {snapshot.commit}
        notes = (*before.notes, path)
        found[key] = Pulled(snapshot, tuple(sorted(revisions, key=lambda r: r != "main")), notes)
    return sorted(found.values(), key=lambda entry: entry.name)


def find(name: str) -> list[Pulled]:
    """Those of the models that a name asks for: of a repository's name alone, all of it.

    FileNotFoundError where none was pulled, ValueError for what is no name.
    """
    repo, revision, file = parse(name)
    says_revision = "@" in of_address(name).partition(":")[0]
    entries = [
        entry
        for entry in pulled()
        if entry.snapshot.repo == repo
        and (not says_revision or revision in (*entry.revisions, entry.snapshot.commit))
        and (file is None or file in entry.snapshot.files)
    ]
    if not entries:
        raise FileNotFoundError(errno.ENOENT, "not pulled (`bitnet list` shows what was)", name)
    return entries


def remove(entry: Pulled) -> int:
    """Delete a model's files from the hub's cache, and its notes; returns the bytes freed.

    Files that another model of the repository shares stay, and so does what others put there.
    """
    repo = hub.repo_folder(entry.snapshot.repo)
    shared = {
        name
        for other in pulled()
        if other.notes != entry.notes
        and (other.snapshot.repo, other.snapshot.commit)
        == (entry.snapshot.repo, entry.snapshot.commit)
        for name in other.snapshot.files
    }
    for note in entry.notes:  # first: what is half deleted is none
        note.unlink(missing_ok=True)
    freed = 0
    for name in entry.snapshot.files:
        path = entry.snapshot.folder / name
        if name in shared or not os.path.lexists(path):
            continue
        target = path.resolve() if path.is_symlink() else None
        if target is None:
            freed += path.stat().st_size
        path.unlink()
        if target is None or not target.is_relative_to(repo.resolve()) or not target.exists():
            continue
        if not any(link.resolve() == target for link in _links(repo)):
            freed += target.stat().st_size
            target.unlink()
    for folder in (entry.snapshot.folder, repo / "snapshots", repo / "blobs"):
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()
    return freed


def _links(repo: Path) -> list[Path]:
    """The files of every snapshot of a repository that are links."""
    return [path for path in (repo / "snapshots").rglob("*") if path.is_symlink()]
