"""Seconds and memory of reading a sent2vec model for the names of a data set's classes; the model is made up.

Each part runs in a process of its own, with what was read or written of the file already in the system's cache:

- embed: the vectors of 400 names of two words (`embed_sentences`); the peak counts pages of the mapped file, which the
  system takes back when it needs them, and beside it stands what the process itself took;
- digest: of the file's content, which results are kept under; once a process.

Run it: ``python benchmarks/sent2vec.py [--words 1000000] [--dim 100] [--bucket 2000000]``

Expect embed to take a second for a million words and to grow with the words alone, not with dim or bucket, and what the
process took to stay below 10 MiB. It writes a file of 4 * (words + bucket) * dim bytes. Figures: docs/benchmarks.md.
"""

import argparse
import multiprocessing
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from l2a_ray.fields import content_digest
from l2a_ray.pairs.sent2vec import embed_sentences

NAMES, CHUNK = 400, 2**16


def make(path: Path, words: int, dim: int, bucket: int) -> None:
    """Write a model with bigrams and random vectors; a word is its number, in words of the length of English ones."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<2i12id", 793712314, 11, dim, 20, 5, 5, 10, 2, 2, 4, bucket, 0, 0, 100, 1e-4))
        file.write(struct.pack("<3i2q", words, words, 0, 10**9, -1))
        for row in range(words):
            file.write(f"word{row}".encode() + struct.pack("<bqb", 0, 10**8 // (row + 1) + 5, 0))
        file.write(struct.pack("<b2q", 0, words + bucket, dim))
        for start in range(0, words + bucket, CHUNK):
            rows = min(CHUNK, words + bucket - start)
            file.write(rng.standard_normal((rows, dim), np.float32).tobytes())


def embed(path: Path, words: int) -> None:
    """Embed names whose words lie all over the dictionary."""
    rows = np.random.default_rng(1).integers(words, size=(NAMES, 2))
    vectors = embed_sentences(path, [f"word{first} word{second}" for first, second in rows])
    assert np.linalg.norm(vectors, axis=1).all()


def digest(path: Path, words: int) -> None:
    """Digest the file, as for a result's key."""
    assert content_digest(str(path))


def mebibytes(field: str) -> float:
    """Return a field of this process's status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) / 2**10


def measured(part: Callable[[Path, int], None], path: Path, words: int) -> str:
    """Run a part; return a row: its name, seconds, and by how much the peak, and what is no file's, have grown."""
    peak, own, began = mebibytes("VmHWM"), mebibytes("RssAnon"), time.perf_counter()
    part(path, words)
    seconds = time.perf_counter() - began
    grown = f"{mebibytes('VmHWM') - peak:.0f} MiB | {mebibytes('RssAnon') - own:.0f} MiB"
    return f"| {part.__name__} | {seconds:.1f} s | {grown} |"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--bucket", type=int, default=2_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        make(path, args.words, args.dim, args.bucket)
        print(f"{path.stat().st_size / 2**30:.2f} GiB")
        print("\n| part | time | peak, with pages of the file | its own |\n|---|---|---|---|")
        for part in (embed, digest):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(measured, (part, path, args.words)), flush=True)


if __name__ == "__main__":
    main()
