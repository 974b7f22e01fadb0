"""The fast step and the fast evaluation: decoders of the Llama family over flat batches, out of autograd."""
