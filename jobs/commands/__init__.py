"""The commands of `darkroom`: a file for each kind, which imports what does the work when it runs."""
