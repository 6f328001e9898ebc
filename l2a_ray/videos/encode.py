"""Writing short clips as MP4 (H.264, PyAV). Axes: T time, H height, W width, C channel."""

import io
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

RATES = (1, 60)  # frames/s; slower is a slide show, faster than screens show
USUAL_RATE = 25.0  # frames/s of a file that does not say
# No B-frames, so that the first frame is at time 0 and no reader has to follow an edit list. One thread: Ray has many.
# No macroblock tree: x264's AVX-512 makes other bytes of the same frames by it, now and then, where frames are small.
_OPTIONS = {"preset": "medium", "bf": "0", "threads": "1", "x264-params": "mbtree=0"}
_BT601, _SMPTE170M, _LIMITED = 6, 6, 1  # how RGB was converted; players must not guess it from the picture's size


def playing_rate(frames: int, frame_count: int, rate: float) -> Fraction:
    """Return the frames/s at which frames sampled from a whole video play as long as the video does.

    Args:
        frames: frames of the clip.
        frame_count: frames of the video; 0 if unknown, then the clip is taken for all of it.
        rate: of the video, frames/s; 0 if unknown, then 25.

    Returns:
        A rate in [1, 60].
    """
    scaled = (rate or USUAL_RATE) * frames / (frame_count or frames)
    return Fraction(min(max(scaled, RATES[0]), RATES[1])).limit_denominator(1000)


def encode_mp4(frames_THWC: NDArray[np.uint8], rate: Fraction, crf: int = 18) -> bytes:
    """Encode RGB frames as H.264 in yuv420p; an odd side repeats its last row or column, for H.264 has even ones.

    Args:
        frames_THWC: RGB uint8.
        rate: frames/s.
        crf: x264's constant rate factor, 0 (best) to 51.

    Returns:
        The content of an MP4 file; the same frames give the same bytes.
    """
    _, height, width, _ = frames_THWC.shape
    even = np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=_OPTIONS | {"crf": str(crf)})
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = _BT601, _LIMITED
        context.color_primaries = context.color_trc = _SMPTE170M
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()
