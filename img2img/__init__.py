"""Client of an img2img service, and the code that its processes share."""
