"""Image generation tasks: compositional pictures of coloured shapes, scored by image analysis."""
