"""What the answers of several nodes say together. Pure."""
