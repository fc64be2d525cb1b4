"""Four small benchmarks as real files, in the on-disk layouts of the data sets they stand for.

The class is decided by motion alone (`synthetic`). A set is a function of its configuration: the same
bytes on the same machine, whatever the number of processes, and a partial set is completed.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tats_core.data import synthetic
from tats_core.data.benchmarks import hmdb51, kinetics400, ssv2, ucf101
from tats_core.data.parallel import CHUNK, in_pieces
from tats_core.data.synthetic import VOCABULARIES, SceneConfig
from tats_core.errors import DataError
from tats_core.files import replacing, write_text
from tats_core.specs import StrictModel, merge

Progress = Callable[[int, int, str], None]
"""Called with clips done, clips in all, and what is being done."""

_DIFFICULTIES: Final[dict[str, dict[str, float]]] = {
    "colourful": {"colour": 1.0, "texture": 0.2},
    "crowded": {"still_sprites": 3},
    "textured": {"background": 0.2, "background_colour": 0.5},
    "shaky": {"camera_jitter": 1.0},
    "noisy": {"noise": 0.06},
    "panned": {"camera_pan": 0.25},
    "lit": {"illumination": 0.3},
    "distracting": {"still_sprites": 3, "still_texture": 0.3},
}
PRESETS: Final = {
    "demo": {},
    **_DIFFICULTIES,
    "hard": {knob: value for knobs in _DIFFICULTIES.values() for knob, value in knobs.items()}
    # As bright on average as all else, the bright sprites that stand still counted.
    | {"colour": 0.7},
}
"""Scenes by name: "demo" teaches something in minutes, each of the next adds one difficulty, "hard" has all,
and what moves in it is neither brighter nor darker than the rest."""

MOTION: Final = "ground_truth_motion"
"""Folder of the masks, below the root of a set."""

_VERSION: Final = 2  # of what this module makes from a configuration
_MARKER: Final = "generated.json"


class GenerateConfig(StrictModel):
    """What is generated."""

    preset: str = Field("demo", description=f"scene to start from: {', '.join(PRESETS)}")
    scene: SceneConfig = Field(SceneConfig(), description="knobs of the scene on top of the preset")
    benchmarks: tuple[Literal["ssv2", "kinetics400", "ucf101", "hmdb51"], ...] = Field(
        ("ssv2", "kinetics400", "ucf101", "hmdb51"), min_length=1, description="which of the four"
    )
    clips_per_class: int = Field(40, ge=1, description="training clips of each class")
    test_clips_per_class: int = Field(16, ge=1, description="test clips of each class")
    frames: int = Field(24, ge=2, description="frames of each clip")
    fps: int = Field(12, ge=1, description="frames a second")
    seed: int = Field(0, ge=0, description="everything random comes from it")

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_preset(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        preset = raw.get("preset", "demo")
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}")
        scene = raw.get("scene", {})
        if isinstance(scene, SceneConfig):
            scene = scene.model_dump(exclude_unset=True)
        return {**raw, "scene": merge(PRESETS[preset], scene) if isinstance(scene, dict) else scene}

    def digest(self) -> str:
        """Return the sha256 of what decides the files."""
        decides = self.model_dump(mode="json", exclude={"preset"})
        return hashlib.sha256(json.dumps([_VERSION, decides], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Encoding:
    """How the clips of a set are encoded."""

    container: str
    codec: str
    options: dict[str, str]


# Quick settings for clips this small that preserve the moving edges: about 35 dB and 10 ms a clip.
_VP9: Final = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "threads": "1"}
# With macroblock trees, x264's bytes depend on what the process encoded before (seen on frames this small).
_H264: Final = {
    "preset": "veryfast",
    "crf": "18",
    "bf": "2",
    "threads": "1",
    "x264-params": "mbtree=0",
}
# B-frames, as in most files of the real sets: the very case that readers get wrong.
_MPEG4: Final = {"bf": "2", "qmin": "2", "qmax": "4", "g": "12", "threads": "1"}

ENCODINGS: Final[dict[str, Encoding]] = {
    "ssv2": Encoding("webm", "libvpx-vp9", _VP9),
    "kinetics400": Encoding("mp4", "libx264", _H264),
    "ucf101": Encoding("avi", "mpeg4", _MPEG4),
    "hmdb51": Encoding("avi", "mpeg4", _MPEG4),
}


class _Clip(NamedTuple):
    """One clip to make: `path` is relative to the root of its data set."""

    benchmark: str
    id: str
    path: str
    motion: str
    number: int


class _Layout(NamedTuple):
    """A data set to make: its clips, and the text of its lists by their path below the root."""

    clips: list[_Clip]
    lists: dict[str, str]


def generate(
    out: Path, config: GenerateConfig, progress: Progress | None = None, workers: int | None = None
) -> dict[str, Path]:
    """Make the data sets of `config` as folders `out/<benchmark>`; clips that exist are not made again.

    Args:
        progress: called now and then; if it raises, the work stops and a later call completes it.
        workers: processes, by default as many as CPUs; 1 makes the clips in this process.

    Returns:
        The root of each data set by name.

    Raises:
        DataError: `out` holds a set of another configuration.
    """
    show = progress or (lambda done, total, text: None)
    layouts = {name: _LAYOUTS[name](config) for name in config.benchmarks}
    clips = [clip for layout in layouts.values() for clip in layout.clips]
    complete = _claim(out, config)
    todo = [clip for clip in clips if not (out / clip.benchmark / clip.path).exists()]
    roots: dict[str, Path] = {name: out / name for name in layouts}
    if complete and not todo:
        show(len(clips), len(clips), "reused")
        return roots
    done = len(clips) - len(todo)
    show(done, len(clips), "encoding")
    for made, _ in in_pieces(partial(_make, out, config), todo, workers):
        for clip in made:
            done += 1
            if done % CHUNK == 0 or done == len(clips):
                show(done, len(clips), clip.benchmark)
    for name, layout in layouts.items():
        for path, text in layout.lists.items():
            write_text(out / name / path, text)
    _mark(out, config, complete=True)
    return roots


def _claim(out: Path, config: GenerateConfig) -> bool:
    """Return whether `out` is marked as complete for `config`; mark it as begun if it is not marked."""
    marker = out / _MARKER
    if not marker.exists():
        _mark(out, config, complete=False)
        return False
    try:
        stored = json.loads(marker.read_text(encoding="utf-8"))
        digest, complete = stored["digest"], bool(stored["complete"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{marker} cannot be read; remove {out} and generate again") from error
    if digest != config.digest():
        raise DataError(
            f"{out} holds a set of other settings (see {_MARKER} there); choose another folder or remove it"
        )
    return complete


def _mark(out: Path, config: GenerateConfig, *, complete: bool) -> None:
    stored = {"digest": config.digest(), "complete": complete, "config": config.model_dump(mode="json")}
    write_text(out / _MARKER, json.dumps(stored, indent=1) + "\n")


# ------------------------------------------------------------------------------------------- clips


def _make(out: Path, config: GenerateConfig, clip: _Clip) -> None:
    """Render and encode a clip; the video is written last, so a video on disk has its ground truth."""
    root = out / clip.benchmark
    class_number = VOCABULARIES[clip.benchmark].index(clip.motion)
    # Keyed by the clip's own names and numbers: more clips a class leave the earlier ones as they were.
    key = (config.seed, zlib.crc32(clip.benchmark.encode()), class_number, clip.number)
    frames_THWC, motion_THW = synthetic.render(
        clip.benchmark, clip.motion, config.scene, config.frames, np.random.default_rng(key)
    )
    motion, video = motion_path(root, clip.id), root / clip.path
    for path in (motion, video):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Thousands of small files: to flush each would take as long as to make it.
    with replacing(motion, durable=False) as temporary, temporary.open("wb") as file:
        # Eight pixels a byte, compressed; `ground_truth.load_motion` reads it.
        np.savez_compressed(file, bits=np.packbits(motion_THW), shape=np.array(motion_THW.shape))
    with replacing(video, durable=False) as temporary:
        encode(temporary, frames_THWC, config.fps, ENCODINGS[clip.benchmark])


def motion_path(root: Path, video_id: str) -> Path:
    """Return the file of a video's ground truth of motion; `root` is that of its data set."""
    return root / MOTION / f"{video_id}.npz"


def encode(
    path: Path, frames_THWC: Iterable[NDArray[np.uint8]], fps: int | Fraction, encoding: Encoding
) -> None:
    """Write RGB frames as one video file; the same frames give the same bytes."""
    # Without the flag a container holds random identifiers and the library's version.
    flags = {"fflags": "+bitexact"}
    with av.open(os.fspath(path), "w", format=encoding.container, options=flags) as container:
        stream = container.add_stream(encoding.codec, rate=fps, options=dict(encoding.options))
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        for number, frame_HWC in enumerate(frames_THWC):
            if number == 0:
                stream.height, stream.width = frame_HWC.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))


# ------------------------------------------------------------------------------------------ layouts


def _numbered(config: GenerateConfig, name: str, extra: int = 0) -> list[tuple[str, int]]:
    """Return `(class, number)` of every clip: training ones first, then test ones, then `extra` more."""
    per_class = config.clips_per_class + config.test_clips_per_class + extra
    return [(motion, number) for motion in VOCABULARIES[name] for number in range(per_class)]


def _names_rng(config: GenerateConfig, name: str) -> np.random.Generator:
    return np.random.default_rng((config.seed, zlib.crc32(f"names of {name}".encode())))


def _ssv2(config: GenerateConfig) -> _Layout:
    """One folder of numbered files; ids are drawn, so that neither they nor their order reveal the class."""
    numbered = _numbered(config, "ssv2", extra=1)
    ids = (_names_rng(config, "ssv2").permutation(len(numbered)) + 1).tolist()
    train, test = config.clips_per_class, config.test_clips_per_class
    clips, answers = [], []
    splits: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    for video_id, (template, number) in sorted(zip(ids, numbered, strict=True)):
        clips.append(_Clip("ssv2", str(video_id), f"{ssv2.VIDEOS}/{video_id}.webm", template, number))
        split = "train" if number < train else "validation" if number < train + test else "test"
        row: dict[str, object] = {"id": str(video_id)}
        if split == "test":
            answers.append(f"{video_id};{ssv2.class_of(template)}\n")
        else:
            label = template.replace("[something]", "a shape")
            row |= {"label": label, "template": template, "placeholders": ["a shape"]}
        splits[split].append(row)
    names = sorted(ssv2.class_of(template) for template in VOCABULARIES["ssv2"])
    files = {"labels": {name: str(label) for label, name in enumerate(names)}, **splits}
    lists = {f"labels/{name}.json": json.dumps(content, indent=1) + "\n" for name, content in files.items()}
    return _Layout(clips, {**lists, "labels/test-answers.csv": "".join(answers)})


def _kinetics400(config: GenerateConfig) -> _Layout:
    """Class folders under `train/` and `val/`, and the CSV lists."""
    rng = _names_rng(config, "kinetics400")
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
    clips = []
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for motion, number in _numbered(config, "kinetics400"):
        youtube_id, start = "".join(rng.choice(letters, 11)), int(rng.integers(300))
        split = "train" if number < config.clips_per_class else "val"
        name = kinetics400.clip_name(youtube_id, start, start + 10)
        clips.append(_Clip("kinetics400", name, f"{split}/{motion}/{name}.mp4", motion, number))
        official = {"train": "train", "val": "validate"}[split]
        rows[split].append(f"{motion},{youtube_id},{start},{start + 10},{official}\n")
    header = "label,youtube_id,time_start,time_end,split\n"
    lists = {f"annotations/{split}.csv": header + "".join(sorted(listed)) for split, listed in rows.items()}
    return _Layout(clips, lists)


def _is_test(config: GenerateConfig, number: int, fold: int) -> bool:
    """Return whether a clip is tested on in `fold`: the folds' test clips follow one another."""
    train, test = config.clips_per_class, config.test_clips_per_class
    return (number - train - (fold - 1) * test) % (train + test) < test


def _ucf101(config: GenerateConfig) -> _Layout:
    """Class folders of avi files in groups of four, `classInd.txt` and three folds of lists."""
    clips = [
        _Clip("ucf101", name, f"{ucf101.VIDEOS}/{motion}/{name}.avi", motion, number)
        for motion, number in _numbered(config, "ucf101")
        for name in [f"v_{motion}_g{number // 4 + 1:02d}_c{number % 4 + 1:02d}"]
    ]
    names = sorted(VOCABULARIES["ucf101"])
    # The published class list ends its lines in CR LF, the others do not.
    lists = {
        f"{ucf101.LISTS}/classInd.txt": "".join(f"{label} {name}\r\n" for label, name in enumerate(names, 1))
    }
    for fold in (1, 2, 3):
        train = [
            f"{clip.motion}/{clip.id}.avi {names.index(clip.motion) + 1}\n"
            for clip in clips
            if not _is_test(config, clip.number, fold)
        ]
        test = [f"{clip.motion}/{clip.id}.avi\n" for clip in clips if _is_test(config, clip.number, fold)]
        lists[f"{ucf101.LISTS}/trainlist{fold:02d}.txt"] = "".join(sorted(train))
        lists[f"{ucf101.LISTS}/testlist{fold:02d}.txt"] = "".join(sorted(test))
    return _Layout(clips, lists)


def _hmdb51(config: GenerateConfig) -> _Layout:
    """Class folders of avi files, some with the odd names of the real set, and three folds of lists.

    Each class has one clip more, which every fold leaves unused (flag 0), as the real lists do.
    """
    films = ("Film_{0:02d}", "#{0}_Film", "Film({0})!", "Film_&_{0}")
    clips = [
        _Clip("hmdb51", name, f"{hmdb51.VIDEOS}/{motion}/{name}.avi", motion, number)
        for motion, number in _numbered(config, "hmdb51", extra=1)
        for name in [f"{films[number % 4].format(number // 4)}_{motion}_f_cm_np1_fr_med_{number % 4}"]
    ]
    used = config.clips_per_class + config.test_clips_per_class
    lists = {}
    for motion in VOCABULARIES["hmdb51"]:
        for fold in (1, 2, 3):
            rows = []
            for clip in (clip for clip in clips if clip.motion == motion):
                split: Literal["train", "test"] = "test" if _is_test(config, clip.number, fold) else "train"
                flag = hmdb51.FLAGS[split] if clip.number < used else "0"
                rows.append(f"{clip.id}.avi {flag} \n")
            lists[f"{hmdb51.LISTS}/{motion}_test_split{fold}.txt"] = "".join(rows)
    return _Layout(clips, lists)


_LAYOUTS: Final[dict[str, Callable[[GenerateConfig], _Layout]]] = {
    "ssv2": _ssv2,
    "kinetics400": _kinetics400,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
}
