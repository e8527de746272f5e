"""Other people's image APIs over the same jobs. What they cannot express here is refused, not dropped."""
