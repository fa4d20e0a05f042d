"""In what precision the transformer's linear layers run, one choice a file."""
