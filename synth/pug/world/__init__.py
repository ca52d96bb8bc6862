"""The embedded world: a small renderer with our own assets that speaks the UnrealCV wire protocol on loopback."""

from __future__ import annotations

from granary.synth.pug.world.process import ServerProcess, start_server
from granary.synth.pug.world.server import serve

__all__ = ["ServerProcess", "serve", "start_server"]
