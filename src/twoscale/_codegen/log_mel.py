"""Log-mel features of speech in integers, the same in Python and in C.

Each frame is windowed, transformed, summed in mel bands, and its logarithm is scaled to 0..255. The features of a clip
are a grey picture, (frames, channels), on which a network is trained as on other pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from twoscale.errors import ConfigurationError

__all__ = ["LogMel"]

_WINDOW_BITS = 15
_TURN_BITS = 14
_WEIGHT_BITS = 12
_LOG_STEPS = 32
_SCALE_BITS = 24


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(2595 * np.log10(1 + np.asarray(hertz) / 700))


@dataclass(frozen=True)
class LogMel:
    """Features of mono sound with 16-bit samples.

    The mel scale is 2595 log10(1 + f / 700). A band rises from its neighbour's center to its own, and falls to the next
    one's.
    """

    sample_rate: int = 16_000
    """Hertz."""
    channels: int = 40
    """Bands, 1 to 128."""
    window_ms: int = 30
    """Milliseconds of a frame, under a Hann window."""
    step_ms: int = 20
    """Milliseconds from one frame to the next."""
    low_hz: float = 20
    """Where the first band begins."""
    high_hz: float = 7_600
    """Where the last band ends."""
    range_db: int = 80
    """Decibels below a full-scale tone that are 0."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError if the features cannot be computed."""
        if not 1 <= self.channels <= 128:
            raise ConfigurationError(f"{self.channels} mel bands; expected 1 to 128")
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ConfigurationError(
                f"mel bands from {self.low_hz:g} to {self.high_hz:g} Hz; expected a range within 0 to "
                f"{self.sample_rate / 2:g} Hz, half the sample rate"
            )
        if not 4 <= self.window <= 4096 or self.step < 1:
            raise ConfigurationError(
                f"{self.window} samples in a frame and {self.step} to the next; expected 4 to 4,096, and 1 or more"
            )
        if not 1 <= self.range_db <= 120:
            raise ConfigurationError(f"a range of {self.range_db} dB; expected 1 to 120")

    @classmethod
    def for_network(cls, shape: Sequence[int], sample_rate: int = 16_000) -> LogMel:
        """Return the features of a network that takes grey pictures (1, frames, channels) of sound.

        Raises:
            ConfigurationError: they cannot be computed.
        """
        return cls(sample_rate, channels=shape[2], high_hz=min(cls.high_hz, sample_rate / 2))

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return self.sample_rate * self.window_ms // 1000

    @property
    def step(self) -> int:
        """Samples from one frame to the next."""
        return self.sample_rate * self.step_ms // 1000

    @property
    def size(self) -> int:
        """Points of the Fourier transform: the frame with zeros up to a power of two."""
        return 1 << (self.window - 1).bit_length()

    @cached_property
    def hann(self) -> NDArray[np.int64]:
        """The window, in units of 2^-15."""
        angles = 2 * np.pi * (np.arange(self.window) + 0.5) / self.window
        return np.asarray(np.rint(32767 * (0.5 - 0.5 * np.cos(angles))), np.int64)

    @cached_property
    def turns(self) -> NDArray[np.int64]:
        """Cosine and sine of k / size of a turn, (size / 2 + 1, 2), in units of 2^-14."""
        angles = 2 * np.pi * np.arange(self.size // 2 + 1) / self.size
        return np.asarray(np.rint(2**_TURN_BITS * np.stack([np.cos(angles), np.sin(angles)], 1)), np.int64)

    @cached_property
    def _edges(self) -> NDArray[np.float64]:
        return np.linspace(_mel(self.low_hz), _mel(self.high_hz), self.channels + 2)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The first bin of the spectrum at or above each edge of the bands, (channels + 2,)."""
        bins = _mel(np.arange(self.size // 2 + 1) * self.sample_rate / self.size)
        return np.searchsorted(bins, self._edges)

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """How far each bin from ends[0] to ends[-1] lies between two edges, in units of 2^-12."""
        bins = np.arange(self.ends[0], self.ends[-1])
        place = (_mel(bins * self.sample_rate / self.size) - self._edges[0]) / (self._edges[1] - self._edges[0])
        return np.asarray(np.rint(2**_WEIGHT_BITS * (place - np.floor(place))), np.int64)

    @cached_property
    def logarithms(self) -> NDArray[np.int64]:
        """log2(1 + i / 32) for i from 0 to 32, in units of 2^-16."""
        return np.asarray(np.rint(65536 * np.log2(1 + np.arange(_LOG_STEPS + 1) / _LOG_STEPS)), np.int64)

    @property
    def least(self) -> int:
        """log2 of the energy that is feature 0, in units of 2^-16."""
        loudest = (1 << _WEIGHT_BITS) * (2**15 * self.window / 2) ** 2
        return round(65536 * (math.log2(loudest) - self.range_db / (10 * math.log10(2))))

    @property
    def scale(self) -> int:
        """Features for one unit of the logarithm, in units of 2^-24."""
        return round((1 << _SCALE_BITS) * 255 * 10 * math.log10(2) / (65536 * self.range_db))

    def frames(self, count: int) -> int:
        """Return the number of whole frames in ``count`` samples."""
        return max(0, (count - self.window) // self.step + 1)

    def __call__(self, samples: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Return the features (frames, channels) of a clip (samples,) of int16.

        Raises:
            ConfigurationError: it is no such clip, or shorter than one frame.
        """
        if samples.dtype != np.int16 or samples.ndim != 1 or not self.frames(len(samples)):
            raise ConfigurationError(
                f"sound of {samples.dtype}, shape {samples.shape}; expected int16 of {self.window} or more samples"
            )
        starts = self.step * np.arange(self.frames(len(samples)))
        frames = samples.astype(np.int64)[starts[:, None] + np.arange(self.window)]
        return self._features(self._energies(self._spectrum(frames)))

    def _spectrum(self, frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return twice the spectrum, of bins 0 to size / 2: a transform of half the size, of pairs of samples."""
        half = self.size // 2
        padded = np.zeros((len(frames), self.size), np.int64)
        padded[:, : self.window] = (frames * self.hann + 2**14) >> _WINDOW_BITS
        bits = half.bit_length() - 1
        order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(half)]
        re, im = padded[:, ::2][:, order], padded[:, 1::2][:, order]
        length = 2
        while length <= half:
            cos, sin = self.turns[:: self.size // length][: length // 2].T
            blocks_re, blocks_im = re.reshape(len(frames), -1, length), im.reshape(len(frames), -1, length)
            a_re, b_re = blocks_re[:, :, : length // 2], blocks_re[:, :, length // 2 :]
            a_im, b_im = blocks_im[:, :, : length // 2], blocks_im[:, :, length // 2 :]
            t_re = (b_re * cos + b_im * sin + 2**13) >> _TURN_BITS
            t_im = (b_im * cos - b_re * sin + 2**13) >> _TURN_BITS
            re = np.concatenate([a_re + t_re, a_re - t_re], 2).reshape(len(frames), half)
            im = np.concatenate([a_im + t_im, a_im - t_im], 2).reshape(len(frames), half)
            length *= 2
        ahead, back = np.arange(half + 1) % half, -np.arange(half + 1) % half
        odd_re, odd_im = re[:, ahead] - re[:, back], im[:, ahead] + im[:, back]
        cos, sin = self.turns.T
        return (
            re[:, ahead] + re[:, back] + ((odd_im * cos - odd_re * sin + 2**13) >> _TURN_BITS),
            im[:, ahead] - im[:, back] - ((odd_im * sin + odd_re * cos + 2**13) >> _TURN_BITS),
        )

    def _energies(self, spectrum: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.int64]:
        """Return the energies (frames, channels) of the bands, in units of 2^-12."""
        re, im = spectrum
        first = self.ends[0]
        energy = (re**2 + im**2)[:, first : self.ends[-1]]
        rising, falling = energy * self.weights, energy * (2**_WEIGHT_BITS - self.weights)
        bands = [slice(a - first, b - first) for a, b in pairwise(self.ends)]
        return np.stack(
            [
                rising[:, up].sum(1) + falling[:, down].sum(1)
                for up, down in pairwise(bands)
            ],
            1,
        )  # fmt: skip

    def _features(self, energies: NDArray[np.int64]) -> NDArray[np.uint8]:
        positive = np.maximum(energies, 1)
        exponent = np.frexp(positive.astype(np.float64))[1].astype(np.int64) - 1
        exponent -= (positive >> exponent) == 0  # rounded up to a power of two
        fraction = np.where(
            exponent > 16, positive >> np.maximum(exponent - 16, 0), positive << (16 - exponent).clip(0)
        )
        fraction -= 65536
        step, rest = fraction >> 11, fraction & 2047
        low = self.logarithms[step]
        log = 65536 * exponent + low + (((self.logarithms[step + 1] - low) * rest) >> 11)
        scaled = ((log - self.least) * self.scale + 2 ** (_SCALE_BITS - 1)) >> _SCALE_BITS
        return np.where(energies == 0, 0, scaled.clip(0, 255)).astype(np.uint8)
