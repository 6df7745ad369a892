"""The VQ tokenizer: encoder, codebook, decoder (Sec. 3.1 and 3.4)."""
