"""Grid puzzles without a language model: model, runs, `solve`, ARC, weights of the originals."""
