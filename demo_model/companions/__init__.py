"""Small companions of the demo model, one for each further kind of conditioning."""
