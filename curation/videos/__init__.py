"""Videos: decoded safely, cut into clips, and what people wrote of their steps."""
