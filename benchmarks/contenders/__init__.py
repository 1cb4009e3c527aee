"""What is measured against what: loops of diffusers, Ray Data, darkroom."""
