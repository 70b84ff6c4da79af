"""finetune: histories -> AnchorModel; generate: AnchorModel -> InterestAnchors."""
