"""Model configuration (models.toml) and loading of components and weights."""
