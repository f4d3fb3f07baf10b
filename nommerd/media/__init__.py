"""ffmpeg and ffprobe: what they can do, what to ask of them, how to run them, and whether the result holds."""
