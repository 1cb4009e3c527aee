"""torch.compile for the blocks of UNets and VAE decoders: which, and for how many shapes."""
