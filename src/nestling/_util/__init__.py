"""What all layers share and no layer is about: files, memory, optional packages. Internal."""
