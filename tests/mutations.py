"""Damaged files for the fuzzers (tests named `test_fuzzed_...`): the same number gives the same damage everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import time
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = int(os.environ.get("IDP_FUZZ_EXAMPLES", "60"))
"""`make fuzz` tries thousands."""


def mutated(data: bytes, number: int) -> bytes:
    """`data` with one to three damages: a flipped bit, a byte, a cut, a removed, doubled or inserted run, zeros."""
    draw = random.Random(number)
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(damaged) + 1)
        run = slice(at, at + draw.choice((1, 2, 8, 64)))
        kind = draw.choice(("bit", "byte", "cut", "remove", "double", "insert", "zeros"))
        if kind == "bit" and at < len(damaged):
            damaged[at] ^= 1 << draw.randrange(8)
        elif kind == "byte" and at < len(damaged):
            damaged[at] = draw.randrange(256)
        elif kind == "cut":
            del damaged[at:]
        elif kind == "remove":
            del damaged[run]
        elif kind == "double":
            damaged[at:at] = damaged[run]
        elif kind == "insert":
            damaged[at:at] = draw.randbytes(draw.choice((1, 4, 16)))
        else:
            damaged[run] = bytes(len(damaged[run]))
    return bytes(damaged)


def sign(shard: Path) -> None:
    """Have the manifest beside a dataset's shard vouch for it as it is now."""
    manifest, content = shard.with_name("manifest.json"), shard.read_bytes()
    said = json.loads(manifest.read_text())
    signed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    next(record for record in said["shards"] if record["name"] == shard.name).update(signed)
    manifest.write_text(json.dumps(said))


@contextmanager
def bounded(*, processor_seconds: float, mebibytes: float):
    """Fail where the block takes more processor time, or raises the process's peak memory by more, than stated."""
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    assert time.process_time() - begun <= processor_seconds, "took too long"
    assert grown <= mebibytes, f"peak memory grew by {grown:.0f} MiB"
