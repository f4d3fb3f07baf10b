"""A source as a camera would make it, for measuring encodes: test pictures are far too easy, and noise alone is far too hard.

Scenes of a few seconds with cuts between them. In each, a still picture of octaves of noise (each finer by four and
weaker by half: much large shape, some detail, as pictures of the world have) slides behind another one that moves against it,
under fresh grain in every frame. x264 at `medium` and CRF 23 makes 4 Mbit/s of it at 1080p30: like ordinary material.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

SCENE_SECONDS = 5.0
RATE = 30
SIZE = (1920, 1080)
OCTAVES = ((16, 9, 8), (64, 36, 4), (256, 144, 2), (1024, 576, 1))  # width, height, weight
CONTRAST = 2.5  # averaging octaves leaves little
GRAIN = 5  # the noise filter's strength, of 100
MAKE_SECONDS = 600.0


def camera_clip(ffmpeg: Path, target: Path, seconds: float) -> Path:
    """Write `seconds` of it to `target`: H.264 1080p30 of high quality with AAC stereo, the same each time; `target`."""
    scenes = [min(SCENE_SECONDS, seconds - begin) for begin in _steps(seconds)]
    graph = ";".join([*(_scene(number, length) for number, length in enumerate(scenes)),
                      "".join(f"[s{number}]" for number in range(len(scenes))) + f"concat=n={len(scenes)}[v]",
                      f"anoisesrc=color=pink:amplitude=0.2:seed=1:sample_rate=48000:duration={seconds},"
                      "tremolo=f=2:d=0.8,aformat=channel_layouts=stereo[a]"])
    subprocess.run([str(ffmpeg), "-nostdin", "-loglevel", "error", "-y", "-filter_complex", graph,
                    "-map", "[v]", "-map", "[a]",
                    "-c:v", "libx264", "-preset", "veryfast", "-crf", "17", "-pix_fmt", "yuv420p", "-c:a", "aac",
                    "-b:a", "256k", "-f", "mp4", str(target)], check=True, timeout=MAKE_SECONDS)
    return target


def _steps(seconds: float) -> list[float]:
    return [number * SCENE_SECONDS for number in range(int(-(-seconds // SCENE_SECONDS)))]


def _scene(number: int, seconds: float) -> str:
    """The graph of one scene, ending in [sNUMBER]. Speeds and directions differ from scene to scene."""
    width, height = SIZE
    right, down = 40 + 30 * (number % 3), 15 + 10 * (number % 2)  # pixels a second
    return ";".join([
        _plate(f"b{number}", 10 * number + 1, width + 640, height + 360),
        _plate(f"o{number}", 10 * number + 6, width // 3, height // 2),
        f"[b{number}]crop={width}:{height}:x='min({right}*t,640)':y='min({down}*t,360)'[m{number}]",
        f"[m{number}][o{number}]overlay=x='W/4+{200 + right}*sin(t)':y='H/4+{60 + down}*cos(t)',"
        f"noise=alls={GRAIN}:allf=t:all_seed={number + 1},trim=duration={seconds},setpts=PTS-STARTPTS,"
        f"format=yuv420p[s{number}]",
    ])


def _plate(label: str, seed: int, width: int, height: int) -> str:
    """A still picture for ever, in [label]."""
    parts, names, weights = [], [], []
    for place, (wide, high, weight) in enumerate(OCTAVES):
        name = f"{label}{place}"
        parts.append(f"color=gray:size={wide}x{high}:rate={RATE}:duration=0.03,format=yuv444p,"
                     f"noise=c0s=100:c1s=40:c2s=40:allf=u:all_seed={seed + place},"
                     f"scale={width}:{height}:flags=bicubic[{name}]")
        names.append(f"[{name}]")
        weights.append(str(weight))
    return ";".join([*parts, f"{''.join(names)}mix=inputs={len(OCTAVES)}:weights='{' '.join(weights)}',eq=contrast={CONTRAST},"
                             f"loop=loop=-1:size=1,setpts=N/{RATE}/TB[{label}]"])
