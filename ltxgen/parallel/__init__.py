"""How one run is spread over processes."""
