"""From opened rows to pixels: the only home of torch beside the demo."""
