"""`make bench-data`: a clip from our loader and from the design of VideoMAE's, in CPU time of all threads.

VideoMAE's published loader is rebuilt from its description: decord opens the file and gives sixteen frames at
their full size, which become PIL images; each is cut by the multi-scale crop and resized, all are stacked,
made floats and normalised. In its test each of the 5 × 3 views is such a decode, with the shorter side
resized and a square cut. Ours ends in bytes, which are normalised on the device; the columns `floats` have
that on the CPU too. Cases run in turn; a ratio is the median over the rounds.

python benchmarks/data.py                        all of it, with the videos made in build/bench-data
python benchmarks/data.py --only h264 --rounds 5
python benchmarks/data.py --long 30              opening and reading a clip of videos of 30 minutes
python benchmarks/data.py --clips 20000          resident memory over so many training clips
python benchmarks/data.py --finetune             a clip with VideoMAE's RandAugment, by where it is applied
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path

import av
import decord
import numpy as np
import psutil
import torch
from measure import ratio, seconds_in_turn
from numpy.typing import NDArray
from PIL import Image

from tats_core.data import clips, readers, transforms
from tats_core.data.benchmarks.own import OWN
from tats_core.data.generate import Encoding, encode
from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.data.pack import pack
from tats_core.data.shrink import Smaller, shrink
from tats_core.imagenet import MEAN, STD

SIZE, FRAMES, CLIPS, CROPS = 224, 16, 5, 3
X264 = {"preset": "medium", "crf": "23", "g": "250", "threads": "1"}
VP9 = {"deadline": "good", "cpu-used": "5", "crf": "31", "b": "0", "g": "128", "threads": "1"}


MPEG4 = {"qmin": "2", "qmax": "4", "bf": "2", "g": "12", "threads": "1"}


@dataclass(frozen=True)
class Kind:
    """Videos as a data set has them."""

    title: str
    size: tuple[int, int]
    """Width and height."""
    encoding: Encoding
    frames: int = 300
    stride: int = 4

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"1.{self.encoding.container}"


KINDS = {
    "h264": Kind("H.264, mp4, 320×240", (320, 240), Encoding("mp4", "libx264", X264)),
    "vp9": Kind("VP9, WebM, 320×240", (320, 240), Encoding("webm", "libvpx-vp9", VP9)),
    "mpeg4": Kind("MPEG-4, avi, 320×240", (320, 240), Encoding("avi", "mpeg4", MPEG4)),
    "ssv2": Kind("SSv2: VP9, WebM, 427×240", (427, 240), Encoding("webm", "libvpx-vp9", VP9), 48, 2),
    "720p": Kind("Kinetics: H.264, mp4, 1280×720", (1280, 720), Encoding("mp4", "libx264", X264)),
}


# ------------------------------------------------------------------------------------------- videos


def scene(kind: Kind, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yield frames in which a camera pans over a surface with detail of all sizes, with grain."""
    rng = np.random.default_rng(seed)
    wide, high = kind.size
    height, width = high + 128, wide + 256
    surface = np.zeros((height, width, 3), np.float32)
    cells = 4
    while cells < width:
        shape = (max(2, cells * height // width), cells)
        noise = [Image.fromarray(rng.random(shape, np.float32) - 0.5) for _ in range(3)]
        layers = [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) for layer in noise]
        surface += np.stack(layers, -1) * (260 / cells**0.5)
        cells *= 2
    for number in range(kind.frames):
        x, y = (int(128 + 120 * np.sin(number / 40)), int(64 + 60 * np.cos(number / 55)))
        frame = 120 + surface[y : y + high, x : x + wide]
        grain = rng.normal(0, 4, (high, wide, 1)).astype(np.float32)
        yield (frame + grain).clip(0, 255).astype(np.uint8)


def made(kind: Kind, folder: Path) -> Path:
    """Return the folder of a data set of one video, made if need be."""
    path = folder / kind.name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "temporary"
        encode(temporary, scene(kind), 30, kind.encoding)
        temporary.rename(path)
    return folder


def lengthened(source: Path, target: Path, minutes: float) -> None:
    """Write the packets of a video again and again until it is so long."""
    with av.open(str(source)) as file, av.open(str(target), "w") as out:
        template = file.streams.video[0]
        stream = out.add_stream_from_template(template)
        packets = [packet for packet in file.demux(template) if packet.size]
        rate = template.average_rate or Fraction(30)
        assert template.time_base is not None
        length = round(len(packets) / rate / template.time_base)
        contents = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for turn in range(round(minutes * 60 * rate / len(packets))):
            for content, pts, dts, is_key in contents:
                packet = av.Packet(content)
                packet.pts = None if pts is None else pts + turn * length
                packet.dts = None if dts is None else dts + turn * length
                packet.time_base, packet.is_keyframe, packet.stream = template.time_base, is_key, stream
                out.mux(packet)


# ----------------------------------------------------------------------------------- VideoMAE's design


def published_clip(path: Path, stride: int, rng: np.random.Generator) -> torch.Tensor:
    """Return `video_CTHW` of a random clip, as its pre-training loads it."""
    reader = decord.VideoReader(str(path), num_threads=1)
    indices = clips.dense_indices(len(reader), FRAMES, stride, rng)
    images = [Image.fromarray(frame) for frame in reader.get_batch(indices.tolist()).asnumpy()]
    box = transforms.multi_scale_box(images[0].height, images[0].width, SIZE, transforms.MULTI_SCALES, rng)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    return _tensor([image.crop(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in images])


def published_view(path: Path, stride: int, clip: int, crop: int) -> torch.Tensor:
    """Return `video_CTHW` of one test view."""
    reader = decord.VideoReader(str(path), num_threads=1)
    indices = clips.dense_indices(len(reader), FRAMES, stride, position=clip / (CLIPS - 1))
    images = [Image.fromarray(frame) for frame in reader.get_batch(indices.tolist()).asnumpy()]
    short = min(images[0].size)
    width, height = (SIZE * side // short for side in images[0].size)
    left = (width - SIZE) * crop // (CROPS - 1)
    resized = (image.resize((width, height), Image.Resampling.BILINEAR) for image in images)
    return _tensor([image.crop((left, 0, left + SIZE, SIZE)) for image in resized])


def _tensor(images: list[Image.Image]) -> torch.Tensor:
    video_THWC = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    video_CTHW = video_THWC.permute(3, 0, 1, 2).contiguous().float().div(255)
    mean_C111, std_C111 = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    return (video_CTHW - mean_C111) / std_C111


# --------------------------------------------------------------------------------------------- cases


class Ours:
    """Random clips, epoch after epoch, and the test views of a data set of one video."""

    def __init__(self, manifest: Manifest, stride: int) -> None:
        self._manifest = manifest
        self._options = ClipOptions(frames=FRAMES, size=SIZE, stride=stride)
        self._loader = TrainLoader(manifest, self._options, batch_size=1, seed=0, purpose="pretrain")
        self._epochs = count()

    def clip(self) -> object:
        """Load a clip as bytes."""
        return next(self._loader.epoch(next(self._epochs)))

    def floats(self) -> object:
        """Load a clip and normalise it."""
        return next(self._loader.epoch(next(self._epochs))).normalised(torch.device("cpu"))

    def views(self) -> object:
        """Load the 5 × 3 test views."""
        return next(eval_views(self._manifest, self._options, clips=CLIPS, crops=CROPS))


def first(path: Path, read: Callable[[], object]) -> None:
    """Read a clip of a file that the process has not seen yet: it is scanned from end to end."""
    os.utime(path)
    read()


# In CPU seconds, of all threads.
in_turn = partial(seconds_in_turn, warm_up=1, clock=time.process_time)


def measured(kind: Kind, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Measure a kind of video: plain, packed and shrunk."""
    plain = made(kind, folder / "plain")
    pack("own", plain, folder / "packed", lambda done, total: None, workers=1)
    shrink(plain, folder / "shrunk", Smaller(SIZE, 16), lambda done, total: None, workers=1)
    (folder / "touched").mkdir(exist_ok=True)
    touched = Path(shutil.copy2(plain / kind.name, folder / "touched"))
    copies = ("plain", "packed", "shrunk", "touched")
    ours = {name: Ours(OWN.read(folder / name, "train"), kind.stride) for name in copies}
    path, rng = plain / kind.name, np.random.default_rng(0)
    views = [(clip, crop) for clip in range(CLIPS) for crop in range(CROPS)]
    return in_turn(
        {
            "videomae": partial(published_clip, path, kind.stride, rng),
            "ours": ours["plain"].clip,
            "floats": ours["plain"].floats,
            "packed": ours["packed"].clip,
            "shrunk": ours["shrunk"].clip,
            "first": partial(first, touched, ours["touched"].clip),
        },
        rounds,
    ) | in_turn(
        {
            "videomae views": lambda: [published_view(path, kind.stride, *view) for view in views],
            "fifteen clips": lambda: [ours["plain"].clip() for _ in views],
            "views": ours["plain"].views,
        },
        max(1, rounds // 5),
    )


def long(kind: Kind, folder: Path, minutes: float, rounds: int) -> str:
    """Measure what reading a clip of a long video takes, the first time and later."""
    path = folder / f"{minutes:g} minutes.{kind.encoding.container}"
    if not path.exists():
        lengthened(made(kind, folder / "plain") / kind.name, path, minutes)
    rng = np.random.default_rng(0)

    def choose(n_frames: int) -> clips.Indices:
        return clips.dense_indices(n_frames, FRAMES, kind.stride, rng)

    read = partial(readers.read_clip, path, choose)
    taken = in_turn({"first": partial(first, path, read), "later": read}, rounds)
    new, known = (1000 * statistics.median(taken[case]) for case in ("first", "later"))
    size = path.stat().st_size / 2**20
    return (
        f"{kind.title}, {minutes:g} minutes, {size:.0f} MiB: first {new:.0f} ms, then {known:.0f} ms a clip"
    )


def memory(kind: Kind, folder: Path, n_clips: int) -> str:
    """Return the resident memory after a tenth of the training clips and after all."""
    ours, process = Ours(OWN.read(made(kind, folder / "plain"), "train"), kind.stride), psutil.Process()
    mebibytes = []
    for number in range(1, n_clips + 1):
        ours.clip()
        if number % max(1, n_clips // 10) == 0:
            mebibytes.append(process.memory_info().rss / 2**20)
    growth = 100 * (mebibytes[-1] / mebibytes[0] - 1)
    course = ", ".join(f"{value:.0f}" for value in mebibytes)
    return f"{kind.title}, {n_clips:,} clips: {course} MiB after each tenth ({growth:+.1f} %)"


def finetuning(kind: Kind, folder: Path, rounds: int) -> str:
    """Measure what a fine-tuning clip costs the process that decodes it."""
    manifest = OWN.read(made(kind, folder / "plain"), "train")
    epochs, cases = count(), {}
    for where in ("worker", "device"):
        options = ClipOptions(
            frames=FRAMES,
            size=SIZE,
            stride=kind.stride,
            sampling="dense",
            rand_augment="rand-m7-n4-mstd0.5-inc1",
            augment_on=where,
        )
        loader = TrainLoader(manifest, options, batch_size=1, seed=0)
        # What a decoding process does: with `device`, the clip is cut elsewhere.
        cases[where] = partial(lambda clips: clips.batch(next(epochs), (0,)), loader._clips)
    taken = in_turn(cases, rounds)
    worker, device = (1000 * statistics.median(taken[where]) for where in cases)
    return f"{kind.title}: {worker:.0f} ms with augment_on: worker, {device:.0f} with device"


def row(title: str, taken: dict[str, list[float]]) -> str:
    """A row of the table."""

    def ms(case: str) -> str:
        return f"{1000 * statistics.median(taken[case]):.0f}"

    def times(case: str, peer: str = "videomae") -> str:
        return f"{ratio(taken, peer, case):.1f}"

    cells = [title, ms("videomae"), ms("ours"), times("ours"), times("floats"), ms("packed"), times("packed")]
    cells += [ms("shrunk"), times("shrunk"), ms("first"), ms("views")]
    cells += [times("views", "videomae views"), times("views", "fifteen clips")]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| video | VideoMAE's, ms | ours, ms | ratio | ratio, floats | packed, ms | ratio | shrunk, ms | ratio "
    "| first time, ms | 5 × 3 views, ms | VideoMAE's / views | 15 clips / views |"
)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-data"))
    parser.add_argument("--long", type=float, metavar="MINUTES")
    parser.add_argument("--clips", type=int, metavar="N")
    parser.add_argument("--finetune", action="store_true")
    options = parser.parse_args()
    if options.clips is not None and options.clips < 1:
        parser.error("--clips must be at least 1")
    torch.set_num_threads(1)
    decord.logging.set_level(decord.logging.FATAL)
    if options.long:
        for name in options.only:
            print(long(KINDS[name], options.folder / name, options.long, options.rounds), flush=True)
        return
    if options.finetune:
        for name in options.only:
            print(finetuning(KINDS[name], options.folder / name, options.rounds), flush=True)
        return
    if options.clips is not None:
        for name in options.only:
            print(memory(KINDS[name], options.folder / name, options.clips), flush=True)
        return
    print(HEAD)
    print("|---" * HEAD.count(" | ") + "|---|")
    for name in options.only:
        print(
            row(KINDS[name].title, measured(KINDS[name], options.folder / name, options.rounds)), flush=True
        )


if __name__ == "__main__":
    main()
