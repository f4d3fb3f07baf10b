"""A usual source, as ffprobe would tell of it: for asking what a recipe makes before there is any."""

from __future__ import annotations

from typing import Any

USUAL: dict[str, Any] = {
    "format": {"format_name": "mov,mp4,m4a,3gp,3g2,mj2", "duration": "60", "tags": {"major_brand": "isom"}},
    "streams": [
        {"index": 0, "codec_type": "video", "codec_name": "h264", "width": 1920, "height": 1080, "pix_fmt": "yuv420p",
         "avg_frame_rate": "25/1", "r_frame_rate": "25/1", "sample_aspect_ratio": "1:1", "duration": "60",
         "color_range": "tv", "color_space": "bt709", "color_transfer": "bt709", "color_primaries": "bt709"},
        {"index": 1, "codec_type": "audio", "codec_name": "aac", "sample_rate": "48000", "channels": 2,
         "channel_layout": "stereo", "duration": "60"}]}
