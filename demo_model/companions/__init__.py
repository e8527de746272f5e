"""Small companions of the demo model, one for each further way in which a picture can condition the result."""
