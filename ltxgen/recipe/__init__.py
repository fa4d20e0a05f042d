"""From a validated recipe to a run: the plan, the executor, the manifest."""
