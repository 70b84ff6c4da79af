"""tokenize: ItemEmbeddings -> SemanticIds."""
