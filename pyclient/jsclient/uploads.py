"""Local files on their way to nodes: small ones as a script's bytes in Redis, large ones in pieces."""

from __future__ import annotations

import os
import stat
from typing import Callable, Iterator, List, Optional, Tuple, Union

from . import keys, scripts
from ._session import Session
from .errors import UsageError

#: Bytes of a piece; the last one of a file may be shorter.
PIECE_BYTES = 1024 * 1024
#: Most bytes of a file.
MAX_FILE_BYTES = 65536 * PIECE_BYTES
#: Pieces stay in Redis for this time, in seconds, after they were stored or read last.
PIECE_TTL_SECONDS = 86400
#: Pieces that are asked for, and then stored, in one round trip.
_BATCH = 8


class Upload:
    """The content of a local file or of bytes, with its size and SHA-256.

    `source` is a path or the content. A regular file may have up to 64 GiB and is not read into memory; a pipe or
    device at most 16 MiB. Raise `UsageError` when it is larger or cannot be read.
    """

    def __init__(self, source: Union[str, bytes]) -> None:
        import hashlib

        self._path = source if isinstance(source, str) else ""
        self._content: Optional[bytes] = None
        # Of each piece, so that none of a changed file is stored under this hash.
        self._digests: List[bytes] = []
        if isinstance(source, str) and _is_large(source):
            digest = hashlib.sha256()
            self.size = 0
            for piece in self._pieces():
                digest.update(piece)
                self._digests.append(_short(piece))
                self.size += len(piece)
            if self.size > MAX_FILE_BYTES:
                raise UsageError(f"{source} has {self.size} bytes; the most is {MAX_FILE_BYTES}")
        else:
            self._content = scripts.read_file(source) if isinstance(source, str) else source
            digest = hashlib.sha256(self._content)
            self.size = len(self._content)
            if self.size > keys.MAX_SCRIPT_BYTES:
                raise UsageError(f"{self.size} bytes are too many; write them to a file, of which any size can be sent")
        #: Hexadecimal.
        self.sha256 = digest.hexdigest()

    @property
    def is_large(self) -> bool:
        """Return whether it travels in pieces."""
        return self._content is None

    def store(self, session: Session, progress: Callable[[int], None] = lambda count: None) -> None:
        """Store it in Redis; pieces that are there already are not sent again. `progress` is told the bytes so far.

        Raise `UsageError` when the file was changed since it was opened.
        """
        if self._content is not None:
            session.store(self._content)
            return
        done = 0
        for batch in _batches(self._pieces()):
            for number, piece in batch:
                if self._digests[number : number + 1] != [_short(piece)]:
                    raise UsageError(f"{self._path} was changed while it was sent; try again")
            names = [keys.blob_key(self.sha256, number) for number, _ in batch]
            known = session.connection.bulk([("EXPIRE", name, PIECE_TTL_SECONDS) for name in names])
            for name, (_, piece), is_there in zip(names, batch, known):
                if not is_there:
                    session.connection.read("SET", name, piece, "EX", PIECE_TTL_SECONDS)
                done += len(piece)
                progress(done)
        if done != self.size:
            raise UsageError(f"{self._path} was changed while it was sent; try again")

    def _pieces(self) -> Iterator[bytes]:
        try:
            with open(self._path, "rb") as file:
                while True:
                    piece = file.read(PIECE_BYTES)
                    if not piece:
                        return
                    yield piece
        except OSError as e:
            raise UsageError(f"cannot read {self._path}: {e.strerror or e}") from None


def _short(piece: bytes) -> bytes:
    import hashlib

    return hashlib.blake2b(piece, digest_size=16).digest()


def _is_large(path: str) -> bool:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False  # reading it tells
    return stat.S_ISREG(found.st_mode) and found.st_size > keys.MAX_SCRIPT_BYTES


def _batches(pieces: Iterator[bytes]) -> Iterator[List[Tuple[int, bytes]]]:
    batch: List[Tuple[int, bytes]] = []
    for number, piece in enumerate(pieces):
        batch.append((number, piece))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
