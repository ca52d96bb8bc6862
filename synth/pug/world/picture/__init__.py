"""From a scene to pixels: tracing, lighting, film, layers."""
