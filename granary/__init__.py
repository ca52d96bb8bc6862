"""granary: curate, render, sample and caption image datasets, and train on them."""
