"""An encoder, a label source and a pre-ranker for prerank."""
