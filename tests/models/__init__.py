"""What comes with darkroom or is built by it: adapters of the demo."""
