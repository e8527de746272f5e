"""Images of a job: decoding inputs, control maps, inpainting canvases, tiles and PNG encoding. No models."""
