"""Where weights are while they aren't computed with: set aside on the host, or streamed from it block by block."""
