"""The playground: a web page at `/` on which people use the service. Its source is in `web/`."""
