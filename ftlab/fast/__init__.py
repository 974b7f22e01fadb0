"""The fast step and the fast evaluation of decoders of the Llama family: flat batches, without autograd."""
