"""The checks of `darkroom doctor`: whether this machine, its software and its stores are fit for a run."""
