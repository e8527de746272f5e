"""Model configuration and loading of components and weights."""
