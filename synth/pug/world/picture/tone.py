"""From light to display: exposure, a filmic curve, a little grading."""

from __future__ import annotations

import numpy as np

from granary.synth.pug.world.content.worlds import World

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
STEPS = 4096


def _srgb_table() -> np.ndarray:
    t = np.linspace(0, 1, STEPS + 1)
    curve = np.where(t <= 0.0031308, 12.92 * t, 1.055 * np.maximum(t, 1e-9) ** (1 / 2.4) - 0.055)
    return curve.astype(np.float32)


TABLE = _srgb_table()


def develop(radiance: np.ndarray, world: World) -> np.ndarray:
    """Turn (n, 3) radiance into display values 0..1, float32.

    The curve is Narkowicz's fit of the ACES film curve (2016); brightness and colour are graded as the world says.
    """
    x: np.ndarray = radiance * np.float32(world.exposure)
    over = x * (np.float32(2.51) * x + np.float32(0.03))
    under = x * (np.float32(2.43) * x + np.float32(0.59)) + np.float32(0.14)
    x = over / under
    grey: np.ndarray = (x @ LUMA)[:, None]
    shown = np.clip(grey + (x - grey) * np.float32(world.saturation), 0, 1)
    return TABLE.take((shown * np.float32(STEPS) + np.float32(0.5)).astype(np.int32))
