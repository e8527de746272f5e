"""A server of the Model Context Protocol, through which agents use a service. It is a client of the service.

https://modelcontextprotocol.io
"""
