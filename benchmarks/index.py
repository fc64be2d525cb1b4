"""Time and memory to open the index of a million videos.

python benchmarks/index.py                      1,000,000 rows
python benchmarks/index.py --rows 10000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tats_core.data.index import SCHEMA

CLASSES = [f"class {number}" for number in range(400)]

OPEN = """
import sys, time
from pathlib import Path
import psutil
import pyarrow
from tats_core.data.index import Index
process = psutil.Process()
before = process.memory_info().rss
start, computing = time.perf_counter(), time.process_time()
index = Index.load(Path(sys.argv[1]))
seconds, computing = time.perf_counter() - start, time.process_time() - computing
grown = (process.memory_info().rss - before) / 2**20
peak = pyarrow.default_memory_pool().max_memory() / 2**20
print(f"{len(index):,} rows: {seconds:.2f} s, {computing:.2f} of computing; {grown:.0f} MB, peak {peak:.0f}")
"""


def table(rows: int) -> pa.Table:
    """Return an index as large as that of so many ten-second clips with a key frame in twelve."""
    rng = np.random.default_rng(0)
    ids = [f"{number:011x}_{number % 600:06d}" for number in range(rows)]
    labels = rng.integers(0, len(CLASSES), rows)
    starts = np.arange(0, 300, 12, dtype=np.int32)
    columns = {
        "id": ids,
        "label": labels,
        "class": pa.DictionaryArray.from_arrays(pa.array(labels, pa.int32()), CLASSES),
        "splits": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, 2, rows), pa.int32()), ["train", "test"]
        ),
        "path": [f"train/{CLASSES[label]}/{name}.mp4" for name, label in zip(ids, labels, strict=True)],
        "bytes": rng.integers(1 << 18, 1 << 22, rows),
        "changed": rng.integers(1 << 60, 1 << 61, rows),
        "head": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), rows, [None, pa.py_buffer(rng.bytes(16 * rows))]
        ),
        "fault": pa.array([""]).take(pa.array(np.zeros(rows, np.int64))),
        "corrupt": pa.ListArray.from_arrays(np.zeros(rows + 1, np.int32), pa.array([], pa.int32())),
        "key_frames": pa.ListArray.from_arrays(
            np.arange(0, len(starts) * rows + 1, len(starts), dtype=np.int32), pa.array(np.tile(starts, rows))
        ),
        **{name: np.full(rows, 300) for name in ("declared", "frames", "decodable", "height", "width")},
        "fps": np.full(rows, 29.97),
        "codec": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["h264"]),
        "pixel_format": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["yuv420p"]),
        "rotation": np.zeros(rows, np.int16),
    }
    return pa.table({field.name: _column(columns.get(field.name), rows, field.type) for field in SCHEMA})


def _column(values: Any, rows: int, kind: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(rows, kind)
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.parquet"
        parquet.write_table(table(parser.parse_args().rows), path, compression="zstd", row_group_size=1 << 16)
        print(f"the file: {path.stat().st_size / 2**20:.0f} MB")
        subprocess.run([sys.executable, "-c", OPEN, str(path)], check=True)
