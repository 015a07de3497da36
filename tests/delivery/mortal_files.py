"""
The calls by which a process changes files, watched, and ended at any one of them as a kill would.

`MortalFiles` puts itself in the place of those calls of `os` and of `mmap.mmap`,
for what is below one directory; everything else goes on as it was. It notes
each call, and can make one of them the last: that call, or a part of what it
was to write, takes effect, `Killed` is raised, and from then on nothing that
the killed program does reaches the disk, not even what it does on its way out.
`bury` closes what the program had open, as the kernel does, which gives up its
locks; after that, the directory is another process's to find.

It can also be a full disk, and it remembers what no sync has covered yet.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

REAL_MAP = mmap.mmap

How = Literal["before", "head", "tail", "after"]
"""What of the last call takes effect: nothing; of what it writes the first or the last half; all."""

HOWS: tuple[How, ...] = ("before", "head", "tail", "after")


class Killed(BaseException):
    """The program was killed. No program handles it."""


class Call(NamedTuple):
    """One call that changed something."""

    name: str
    path: str


class MortalFiles:
    """
    File calls below a directory. A context manager; thread-safe, as far as a kill is.

    Args:
        root: What is below it is watched. It exists.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.calls: list[Call] = []
        """What changed files so far, in order; `restart` keeps it."""
        self.is_full = False
        """Whether the disk takes nothing: neither new files nor more bytes in old ones."""
        self.is_dead = False
        """Whether the program was killed and is not buried."""
        self._last: tuple[int, How] | None = None
        self._patch = pytest.MonkeyPatch()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._paths: dict[int, Path] = {}
        self._maps: list[mmap.mmap] = []
        self._unsynced: set[Path] = set()

    def __enter__(self) -> Self:
        replace = self._patch.setattr
        self._real = {name: getattr(os, name) for name in (*_BY_PATH, *_BY_DESCRIPTOR, "open", "fdopen")}
        for name in _BY_PATH:
            replace(os, name, self._by_path(name))
        for name in _BY_DESCRIPTOR:
            replace(os, name, self._by_descriptor(name))
        replace(os, "open", self._open)
        replace(os, "fdopen", self._fdopen)
        replace(mmap, "mmap", self._map_class())
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self.bury()

    def kill_at(self, number: int, how: How = "before") -> None:
        """Make the call after *number* more the program's last: 0 is the next."""
        self._last = (len(self.calls) + number, how)

    def spare(self) -> None:
        """Let the program live after all."""
        self._last = None

    def kill(self) -> None:
        """
        End the program here and now.

        Raises:
            Killed: Always.
        """
        self.is_dead = True
        raise Killed

    def bury(self) -> None:
        """Close what the killed program had open, and let another one use the directory."""
        for made in self._maps:
            REAL_MAP.close(made)
        for descriptor in self._paths:
            self._real["close"](descriptor)
        self._maps.clear()
        self._paths.clear()
        self.is_dead = False
        self.spare()

    # --- what a power cut would take ---

    @property
    def unsynced(self) -> set[str]:
        """Names of files with bytes, and of directories with entries, that no sync has covered since."""
        with self._lock:
            return {path.name for path in self._unsynced}

    def wait_until_synced(self, timeout: float) -> bool:
        """Wait until nothing is left in `unsynced`; returns whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._unsynced, timeout)

    # --- in the place of the calls ---

    def _is_watched(self, path: object) -> bool:
        if isinstance(path, (str, bytes, os.PathLike)):
            return Path(os.fsdecode(path)).is_relative_to(self.root)
        return False

    def _live(self) -> None:
        if self.is_dead:
            raise Killed

    def _step(self, name: str, path: Path, do: Callable[[How], Any], *, grows: bool = False) -> Any:
        """Do one call, unless the program does not live to see it, or the disk is full."""
        with self._lock:
            self._live()
            how: How | None = None
            if self._last is not None and self._last[0] <= len(self.calls):
                how = self._last[1]
            self.calls.append(Call(name, path.name))
            if how is not None:
                if how != "before" and not (grows and self.is_full):
                    do(how)
                self.kill()
            if grows and self.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return do("after")

    def _dirty(self, path: Path) -> None:
        self._unsynced.add(path)

    def _by_path(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if not self._is_watched(path):
                return real(path, *arguments, **options)
            watched = Path(os.fsdecode(path))

            def do(how: How) -> Any:
                if how in {"head", "tail"}:  # these are done or not done
                    return None
                result = real(path, *arguments, **options)
                if name in {"rename", "replace"}:
                    target = Path(os.fsdecode(arguments[0]))
                    for descriptor, known in self._paths.items():
                        if known == watched:
                            self._paths[descriptor] = target
                    for made in self._maps:
                        if made.path == watched:  # type: ignore[attr-defined]
                            made.path = target  # type: ignore[attr-defined]
                    if watched in self._unsynced:
                        self._unsynced.discard(watched)
                        self._unsynced.add(target)
                elif name in {"unlink", "remove"}:
                    self._unsynced.discard(watched)
                if name not in {
                    "unlink",
                    "remove",
                    "chmod",
                }:  # a file that comes back is sent again, and no loss
                    self._dirty(watched.parent)
                return result

            return self._step(name, watched, do, grows=name == "mkdir")

        return call

    def _by_descriptor(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(descriptor: int, *arguments: Any) -> Any:
            path = self._paths.get(descriptor)
            if path is None:
                return real(descriptor, *arguments)
            self._live()
            if name == "close":
                del self._paths[descriptor]
                return real(descriptor)
            if name == "dup":
                copy = real(descriptor)
                self._paths[copy] = path
                return copy

            def do(how: How) -> Any:
                given = arguments
                if how in {"head", "tail"}:
                    if name != "write":
                        return None
                    given = (_part(arguments[0], how),)  # a write that is cut off is so at its end
                result = real(descriptor, *given)
                with self._changed:
                    if name in {"fsync", "fdatasync"}:
                        self._unsynced.discard(path)
                        self._changed.notify_all()
                    elif name != "posix_fallocate":
                        self._dirty(path)
                return result

            return self._step(name, path, do, grows=name in {"write", "pwrite", "posix_fallocate"})

        return call

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        real = self._real["open"]
        if not self._is_watched(path):
            return int(real(path, flags, mode, **options))
        watched = Path(os.fsdecode(path))

        def do(how: How) -> int:
            if how in {"head", "tail"}:
                return -1
            descriptor: int = real(path, flags, mode, **options)
            self._paths[descriptor] = watched
            if flags & os.O_CREAT:
                self._dirty(watched.parent)
            return descriptor

        if flags & os.O_CREAT:
            return int(self._step("open", watched, do, grows=True))
        self._live()
        return int(do("after"))

    def _fdopen(self, descriptor: int, *arguments: Any, **options: Any) -> Any:
        """A file object writes by itself: whether it does is one step."""
        real = self._real["fdopen"]
        path = self._paths.get(descriptor)
        if path is None:
            return real(descriptor, *arguments, **options)

        def do(how: How) -> Any:
            if how != "after":
                return None
            del self._paths[descriptor]
            return real(descriptor, *arguments, **options)

        return self._step("fdopen", path, do)

    def _map_class(self) -> type[mmap.mmap]:
        files = self

        class Map(mmap.mmap):
            path: Path

            def __new__(cls, descriptor: int, *arguments: Any, **options: Any) -> Self:
                path = files._paths.get(descriptor)
                made = super().__new__(cls, descriptor, *arguments, **options)
                if path is not None:
                    files._live()
                    made.path = path
                    files._maps.append(made)
                return made

            def __setitem__(self, where: Any, data: Any) -> None:
                def do(how: How) -> None:
                    start, _, _ = where.indices(len(self))
                    part = _part(data, how)
                    if how == "tail":  # a copy need not begin at the beginning
                        start += len(data) - len(part)
                    REAL_MAP.__setitem__(self, slice(start, start + len(part)), part)
                    files._dirty(self.path)

                if self not in files._maps:
                    super().__setitem__(where, data)
                else:
                    files._step("store", self.path, do)

            def resize(self, size: int) -> None:
                files._live()
                super().resize(size)

            def close(self) -> None:
                files._live()
                if self in files._maps:
                    files._maps.remove(self)
                super().close()

        return Map


_BY_PATH = ("mkdir", "rmdir", "chmod", "rename", "replace", "unlink", "remove", "truncate")
_BY_DESCRIPTOR = tuple(
    name
    for name in ("write", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "dup", "close")
    if hasattr(os, name)
)


def _part(data: bytes, how: How) -> bytes:
    half = len(data) // 2
    return data[:half] if how == "head" else data[half:] if how == "tail" else data
