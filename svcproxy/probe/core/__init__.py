"""What is sent, how kernel messages are read, and what the outcome means. Pure."""
