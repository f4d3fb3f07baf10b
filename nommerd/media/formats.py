"""Which containers ffmpeg may open, per kind of input, and which it may write.

Only self-contained ones: demuxers that open further files or hosts (hls, dash, concat, sdp, image2, imf, mpjpeg, ffmetadata,
tty and the like) are on no list. Names are ffmpeg's, of 5.1 and newer.
"""

from __future__ import annotations

from pathlib import Path

_MEDIA = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "mpegts", "mpeg", "avi", "flv", "asf", "ogg", "mxf", "gxf",
    "wtv", "rm", "nut", "ivf", "dv", "h264", "hevc", "m4v", "mpegvideo", "obu", "av1", "gif", "yuv4mpegpipe", "wav", "w64",
    "aiff", "au", "caf", "mp3", "aac", "loas", "ac3", "eac3", "dts", "dtshd", "truehd", "flac", "tta", "wv", "ape", "tak",
    "mpc", "mpc8", "amr", "amrnb", "amrwb", "dsf",
)
_IMAGES = ("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif")
_CAPTIONS = ("srt", "webvtt", "ass")
INPUT_FORMATS: dict[str, str] = {kind: ",".join(names) for kind, names in
                                 {"media": _MEDIA, "images": _IMAGES, "captions": _CAPTIONS}.items()}
INPUT_PROTOCOLS = "file"

# Their length is a guess from the bit rate, or from a clock that wraps.
ESTIMATED_CONTAINERS = frozenset({
    "mpeg", "aac", "loas", "h264", "hevc", "m4v", "mpegvideo", "obu", "av1", "ac3", "eac3", "dts", "truehd", "amr", "amrnb",
    "amrwb",
})

# What a file that ffprobe could not read claims to be by its first bytes: a broken one of these is media, if unreadable.
_SIGNATURES = (
    (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"), (0, b"RF64"), (0, b"OggS"), (0, b"fLaC"), (0, b"ID3"), (0, b"FLV\x01"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), (0, b"\x00\x00\x01\xba"), (0, b"\x00\x00\x01\xb3"), (0, b"FORM"), (0, b"caff"),
    (0, b"\x06\x0e\x2b\x34"), (0, b"GIF8"), (0, b"YUV4MPEG2"), (0, b"DKIF"), (0, b".RMF"),
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")
_IMAGE_DEMUXERS = (
    (0, b"\x89PNG\r\n\x1a\n", "png_pipe"), (0, b"\xff\xd8\xff", "jpeg_pipe"), (0, b"BM", "bmp_pipe"), (0, b"GIF8", "gif"),
    (0, b"II*\x00", "tiff_pipe"), (0, b"MM\x00*", "tiff_pipe"), (8, b"WEBP", "webp_pipe"),
)
_SHORT_NAMES = {"matroska,webm": "matroska"}

# container name in recipes -> (muxer, extension)
OUTPUTS: dict[str, tuple[str, str]] = {
    "mp4": ("mp4", "mp4"), "m4a": ("ipod", "m4a"), "mov": ("mov", "mov"), "mkv": ("matroska", "mkv"), "webm": ("webm", "webm"),
    "mp3": ("mp3", "mp3"), "wav": ("wav", "wav"), "flac": ("flac", "flac"), "ogg": ("ogg", "ogg"), "mpegts": ("mpegts", "ts"),
    "aac": ("adts", "aac"),
}
FAST_START_CONTAINERS = frozenset({"mp4", "m4a", "mov"})
FAST_START_MUXERS = frozenset({"mp4", "mov", "ipod", "3gp", "3g2", "psp"})  # of the MP4 family, all that may be written


def container_name(format_name: str, major_brand: str | None) -> str:
    """One name for ffprobe's list of them: `mov,mp4,m4a,…` is mov or mp4 by its brand."""
    if format_name.startswith("mov,"):
        return "mov" if major_brand is None or major_brand.strip() in ("", "qt") else "mp4"
    return _SHORT_NAMES.get(format_name, format_name)


def _head(path: Path, size: int = 512) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def looks_like_media(path: Path) -> bool:
    """Whether the first bytes are those of a container we read, whatever follows."""
    head = _head(path, 4 * 188 + 1)
    if any(head[at : at + len(mark)] == mark for at, mark in _SIGNATURES) or head[4:8] in _BOXES:
        return True
    return any(len(head) > start + 3 * step and all(head[start + n * step] == 0x47 for n in range(4))
               for start, step in ((0, 188), (4, 192)))


def image_demuxer(path: Path) -> str | None:
    """The demuxer for a picture by its first bytes: by its name ffmpeg would choose image2, which expands patterns."""
    head = _head(path)
    return next((name for at, mark, name in _IMAGE_DEMUXERS if head[at : at + len(mark)] == mark), None)
