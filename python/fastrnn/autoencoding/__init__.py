"""Parts of the autoencoders: networks, loss terms, embeddings, files."""
