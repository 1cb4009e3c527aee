"""The programs that are compared: loops of plain diffusers, Ray Data and darkroom."""
