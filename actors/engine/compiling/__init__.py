"""torch.compile for the blocks of UNets and VAE decoders: which, how often, and where code is kept."""
