"""What daemon and client of the admin socket exchange. Pure."""
