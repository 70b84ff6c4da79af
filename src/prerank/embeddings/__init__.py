"""encode: catalog -> ItemEmbeddings, the frozen semantic space."""
