"""The Hugging Face hub, as far as plans need it: small files that say how large a model is, or how it counts tokens."""
