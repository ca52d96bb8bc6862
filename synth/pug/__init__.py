"""PUG datasets: factors of variation, renderers and the embedded world."""
