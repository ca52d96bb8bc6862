"""The embedded world: a small renderer with our own assets that speaks the UnrealCV wire protocol on loopback."""

from __future__ import annotations

from synth.pug.world.process import ServerProcess, start_server
from synth.pug.world.server import serve

__all__ = ["ServerProcess", "serve", "start_server"]
