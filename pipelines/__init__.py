"""Apache Beam pipelines and the command line: the only code of granary that imports Beam."""
