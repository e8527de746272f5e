"""What the front end says of itself to those who run it: metrics, a line for each request, traces."""
