"""Parts of the autoencoders: networks, loss terms, noise, embeddings, pictures."""
