"""Models and methods that train on granary shards."""
