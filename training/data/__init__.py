"""From shards to batches: order, decoding, crops, augmentation, captions."""
