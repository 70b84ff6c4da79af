"""label: anchors and unexposed candidates -> PseudoLabels."""
