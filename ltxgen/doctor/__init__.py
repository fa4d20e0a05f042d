"""`ltxgen doctor`: what this machine has for a run, what it lacks, and how to mend it."""
